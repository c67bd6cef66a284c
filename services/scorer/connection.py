"""One attempt at a target through the OpenAI SDK: a reply or a classified failure."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import openai

from services.scorer.failures import Failure, Kind, classify, error_of
from services.scorer.settings import Settings
from services.scorer.targets import Target
from services.scorer.transport import BadCertificate, BodyTooLarge, BoundedTransport, NotSent

Message = Mapping[str, str]
CHAT: Final = "/chat/completions"
UNSTORABLE: Final = re.compile(r"[\x00\ud800-\udfff]")
"""What no database keeps as text (NUL) and no UTF-8 can say (halves of surrogate pairs)."""
MAX_TOKENS_PER_CHARACTER: Final = 4
TEMPLATE_TOKENS: Final = 1_000
"""A chat template adds at most about this many tokens; more in `usage` is a wrong number."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the target answered. Token counts are None where the target gave none, or nonsense."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class Remaining:
    """What the rate-limit headers say is left; None where they say nothing one can believe."""

    requests: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request: its outcome, what the headers said, and how long it took."""

    outcome: Reply | Failure
    remaining: Remaining
    seconds: float


class Connection:
    """The SDK client of one target. The SDK's retries are off: each attempt must be counted."""

    def __init__(self, target: Target, settings: Settings) -> None:
        config = target.config
        self.target = target
        self._http = httpx2.AsyncClient(
            transport=BoundedTransport(
                key=target.key,
                max_body_bytes=settings.max_response_bytes,
                connect_timeout_seconds=config.connect_timeout_seconds,
                read_timeout_seconds=config.timeout_seconds,
                proxy=config.proxy,
            ),
            follow_redirects=False,
            trust_env=False,
        )
        # the transport adds the real key; the SDK, its errors and its logs never hold it
        sdk = openai.AsyncOpenAI(
            api_key="in-the-transport",
            base_url=config.base_url,
            max_retries=0,
            timeout=config.timeout_seconds,
            http_client=self._http,
        )
        # unless set, each of the first calls starts a thread to find it out; the transport drops it
        sdk._platform = "Unknown"
        self._post = sdk.post
        self._models = sdk.models.with_raw_response.list
        self.body = config.body()

    async def ask(self, messages: Sequence[Message]) -> Attempt:
        """Send one request; every failure of the target or the network is a `Failure`."""
        begun = time.monotonic()
        headers: Mapping[str, str] = {}
        outcome: Reply | Failure
        try:
            async with asyncio.timeout(self.target.config.timeout_seconds):
                # its typed method would walk through the messages and parse the answer: a quarter
                # of the call's processor time, for what is known and what we check ourselves
                response = await self._post(
                    CHAT, body={"messages": messages, **self.body}, cast_to=httpx2.Response
                )
            headers = response.headers
            outcome = self._read(messages, response.content)
        except openai.APIStatusError as error:
            headers = error.response.headers
            outcome = self._classify(error.response.status_code, headers, error.response.content)
        except (openai.APIConnectionError, TimeoutError) as error:
            outcome = self._unreachable(error)
        return Attempt(outcome, remaining(headers), time.monotonic() - begun)

    async def probe(self) -> Failure | None:
        """Ask for the list of models, which costs nothing; None if the target answers.

        A target without that route answers 404 or 405, which shows that it is there.
        """
        try:
            async with asyncio.timeout(min(10.0, self.target.config.timeout_seconds)):
                await self._models()
        except openai.APIStatusError as error:
            status = error.response.status_code
            if status in {404, 405, 429, 501}:
                return None
            return self._classify(status, error.response.headers, error.response.content)
        except (openai.APIConnectionError, TimeoutError) as error:
            return self._unreachable(error)
        return None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def _read(self, messages: Sequence[Message], body: bytes) -> Reply | Failure:
        broken = Failure(
            "broken_answer", f"target {self.target.name} sent a body that is no answer", Kind.RETRY
        )
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return broken
        if not isinstance(content, dict):
            return broken
        if content.get("error"):
            return self._classify(200, {}, body)
        choices = content.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return broken
        message = choices[0].get("message")
        if not isinstance(message, dict):
            return broken
        text = message.get("content")
        finish = choices[0].get("finish_reason")
        is_refused = finish == "content_filter" or bool(message.get("refusal"))
        if text is None and (is_refused or finish == "length"):
            text = ""
        if not isinstance(text, str):
            return broken
        length = sum(len(message["content"].encode()) for message in messages)
        usage = content.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Reply(
            text=UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text),
            prompt_tokens=_count(usage.get("prompt_tokens"), length + TEMPLATE_TOKENS),
            completion_tokens=_count(
                usage.get("completion_tokens"),
                max(self.target.config.sampling.max_tokens, MAX_TOKENS_PER_CHARACTER * len(text)),
            ),
            is_refused=is_refused,
        )

    def _classify(self, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
        said = error_of(body).get("message")
        return classify(
            self.target.name, status, headers, body, said=self._scrub(said) if said else ""
        )

    def _scrub(self, said: object) -> str:
        """Return a target's own words without our key, on one short line."""
        text = " ".join(str(said).split())
        if self.target.key is not None:
            text = text.replace(self.target.key.get_secret_value(), "***")
        return "".join(c for c in text if c.isprintable())[:200]

    def _unreachable(self, error: Exception) -> Failure:
        name, cause = self.target.name, error.__cause__
        if isinstance(cause, BadCertificate):
            return Failure(
                "target_certificate",
                f"the certificate of target {name} is not trusted; correct base_url or install "
                "its authority",
                Kind.STOPS_JOB,
                is_sent=False,
            )
        if isinstance(cause, NotSent):
            return Failure(
                "target_unreachable",
                f"no connection to target {name}; is it running at its base_url?",
                Kind.RETRY,
                is_sent=False,
            )
        if isinstance(cause, BodyTooLarge):
            return Failure(
                "answer_too_large", f"target {name} sent more than any answer is", Kind.RETRY
            )
        if isinstance(error, (TimeoutError, openai.APITimeoutError)):
            seconds = self.target.config.timeout_seconds
            return Failure(
                "target_timeout", f"target {name} gave no answer in {seconds:g} s", Kind.RETRY
            )
        return Failure(
            "connection_lost", f"target {name} broke the connection while answering", Kind.RETRY
        )


def remaining(headers: Mapping[str, str]) -> Remaining:
    """Read `x-ratelimit-remaining-*`, believing them only beside a limit that makes sense."""

    def read(unit: str) -> int | None:
        limit = _count(headers.get(f"x-ratelimit-limit-{unit}"), 10**12)
        left = _count(headers.get(f"x-ratelimit-remaining-{unit}"), 10**12)
        return left if limit and left is not None and left <= limit else None

    return Remaining(read("requests"), read("tokens"))


def _count(value: Any, largest: int) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:15])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        return None
    return value
