"""The metric `webhook`: a team's own scorer over HTTP, signed, bounded, behind the egress guard.

The signature follows the Standard Webhooks convention, so that a receiver can check it with a
ready-made library: HMAC-SHA256 over `id.timestamp.body`, in base64 after `v1,`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import math
import random
import ssl
import time
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from instructzero.contracts import ScoreError
from services.scorer.conditions import Waits
from services.scorer.egress import ForbiddenAddress, GuardedResolver, Lookup, look_up
from services.scorer.failures import Failure, Kind, retry_after
from services.scorer.settings import Settings
from services.scorer.targets import Webhook
from services.scorer.wanted import Case, Terms

MAX_REPLY_BYTES: Final = 64 * 1024
RETRYABLE_STATUS: Final = frozenset({408, 409, 425, 429})
STOPS_JOB_STATUS: Final = frozenset({401, 403, 404, 405, 410})


class ScoringWebhook:
    """Asks one registered webhook for scores. What fails is an error and never a score."""

    def __init__(self, webhook: Webhook, settings: Settings, *, look_up: Lookup = look_up) -> None:
        """Take the webhook; another way to look names up is for tests."""
        config = webhook.config
        self._webhook = webhook
        self._settings = settings
        self._guard = GuardedResolver(allow_private=config.allow_private, look_up=look_up)
        self._slots = asyncio.Semaphore(config.in_flight)
        self._timeout = aiohttp.ClientTimeout(total=config.timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._jitter = random.Random()  # noqa: S311 - spreads retries, decides nothing

    async def score(
        self, terms: Terms, case: Case, answer: str, waits: Waits
    ) -> float | ScoreError:
        """Return the score of one answer, after a few attempts if need be."""
        body = _body(terms, case, answer)
        for n_tried in range(1, self._settings.max_attempts + 1):
            async with self._slots:
                outcome = await self._attempt(body)
            if not isinstance(outcome, Failure):
                return outcome
            if outcome.kind is not Kind.RETRY or n_tried == self._settings.max_attempts:
                return outcome.as_error()
            ceiling = min(
                self._settings.backoff_cap_seconds,
                self._settings.backoff_base_seconds * 2**n_tried,
            )
            hint = min(outcome.retry_after_seconds or 0.0, self._settings.max_retry_after_seconds)
            with waits.begin("target_unavailable"):
                await asyncio.sleep(hint + self._jitter.uniform(0.0, ceiling))
        raise AssertionError("max_attempts is at least 1")

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _attempt(self, body: bytes) -> float | Failure:
        url = self._webhook.config.url
        try:
            self._check_literal(url)
            async with self._open_session().post(
                url,
                data=body,
                headers=self._headers(body),
                allow_redirects=False,
                timeout=self._timeout,
            ) as response:
                if response.status != 200:
                    return self._refused(response.status, response.headers)
                return await self._read(response)
        except (ForbiddenAddress, aiohttp.ClientConnectorError) as error:
            return self._unreachable(error)
        except TimeoutError:
            seconds = self._webhook.config.timeout_seconds
            return self._failure("webhook_timeout", f"gave no score in {seconds:g} s", Kind.RETRY)
        except (aiohttp.ClientError, OSError, ValueError):
            return self._failure("webhook_lost", "broke the connection", Kind.RETRY)

    def _check_literal(self, url: str) -> None:
        """Check an address that stands in the URL itself; no resolver sees it."""
        host = urlsplit(url).hostname or ""
        try:
            ip_address(host)
        except ValueError:
            return
        self._guard.check(host, host)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0,  # the slots bound the calls in flight
                resolver=self._guard,
                use_dns_cache=False,
                ssl=ssl.create_default_context(),
            )
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session

    def _headers(self, body: bytes) -> dict[str, str]:
        return {
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",  # so that the bound on the reply is one
            "user-agent": "instructzero",
            **sign(self._webhook.key, body, int(time.time())),
        }

    async def _read(self, response: aiohttp.ClientResponse) -> float | Failure:
        text = b""
        async for chunk in response.content.iter_any():
            text += chunk
            if len(text) > MAX_REPLY_BYTES:
                response.close()
                return self._failure(
                    "webhook_broken_answer",
                    f"sent more than {MAX_REPLY_BYTES} bytes",
                    Kind.STOPS_EXAMPLE,
                )
        score = read_score(text)
        if score is None:
            return self._failure(
                "webhook_broken_answer",
                'must answer {"score": x} with x from 0 to 1',
                Kind.STOPS_EXAMPLE,
            )
        return score

    def _refused(self, status: int, headers: Mapping[str, str]) -> Failure:
        if status >= 500 or status in RETRYABLE_STATUS:
            lower = {name.lower(): value for name, value in headers.items()}
            return self._failure(
                "webhook_error", f"failed ({status})", Kind.RETRY, retry_after(lower)
            )
        if 300 <= status < 400:
            return self._failure(
                "webhook_redirected",
                "answers with a redirect, which is never followed; write the final address as url",
                Kind.STOPS_JOB,
            )
        kind = Kind.STOPS_JOB if status in STOPS_JOB_STATUS else Kind.STOPS_EXAMPLE
        return self._failure("webhook_refused", f"refused the request ({status})", kind)

    def _unreachable(self, error: Exception) -> Failure:
        cause = getattr(error, "os_error", error)
        if isinstance(cause, ForbiddenAddress) or isinstance(error.__cause__, ForbiddenAddress):
            return self._failure(
                "webhook_forbidden_address",
                "leads to an address that is not public; write allow_private: true beside its url "
                "if that is meant",
                Kind.STOPS_JOB,
            )
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return self._failure(
                "webhook_certificate", "has a certificate that is not trusted", Kind.STOPS_JOB
            )
        return self._failure("webhook_unreachable", "takes no connection", Kind.RETRY)

    def _failure(
        self, code: str, what: str, kind: Kind, retry_after_seconds: float | None = None
    ) -> Failure:
        return Failure(code, f"webhook {self._webhook.name} {what}", kind, retry_after_seconds)


def sign(key: bytes, body: bytes, timestamp: int) -> dict[str, str]:
    """Return the headers by which the receiver knows who sent a body, and when.

    The id is a digest of the body: the same for every attempt at the same score.
    """
    name = hashlib.sha256(body).hexdigest()[:32]
    signed = hmac.new(key, f"{name}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": name,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def read_score(body: bytes) -> float | None:
    """Return the score of a reply, None unless it is a number in [0, 1]."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    score = content.get("score") if isinstance(content, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return float(score) if math.isfinite(score) and 0 <= score <= 1 else None


def _body(terms: Terms, case: Case, answer: str) -> bytes:
    content = {
        "job_id": terms.job_id,
        "example_id": case.id,
        "input": case.input,
        "outputs": list(case.outputs),
        "answer": answer,
    }
    return json.dumps(content, ensure_ascii=False).encode()
