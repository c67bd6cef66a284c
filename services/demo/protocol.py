"""OpenAI's chat protocol as far as the demo target speaks it: requests, answers and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from services.demo.executor import DEFAULT_MAX_TOKENS, Answer

MODEL = "demo"
MAX_BODY_BYTES = 1024 * 1024
_MAX_MESSAGES = 200


class Refused(Exception):
    """A request that gets an error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the refusal; `message` never holds a key."""
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.document = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        """Return what the client gets."""
        return JSONResponse(self.document, status_code=self.status, headers=self.headers)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    return text


def _as_text(content: object) -> object:
    """Join a list of text parts, the long form of a message's content."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError("only text parts are understood")
        text = part.get("text")
        if not isinstance(text, str):
            raise ValueError("a text part needs `text`, a string")  # noqa: TRY004 - for Pydantic
        texts.append(text)
    return "".join(texts)


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop or []


Text = Annotated[str, AfterValidator(_encodable)]
Content = Annotated[Text, BeforeValidator(_as_text)]
StopText = Annotated[Text, Field(min_length=1, max_length=100)]
Stop = Annotated[tuple[StopText, ...], Field(max_length=4), BeforeValidator(_as_list)]


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class ChatRequest(BaseModel):
    """What is read of a request; sampling parameters are ignored, for answers are greedy."""

    model_config = ConfigDict(frozen=True)

    model: str
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=_MAX_MESSAGES)]
    max_tokens: int | None = Field(None, ge=1, le=1_000_000, strict=True)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000, strict=True)
    stop: Stop = ()
    n: Literal[1] | None = None
    stream: Literal[False] | None = None

    @property
    def limit(self) -> int:
        """The most tokens the answer may have."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS

    def chat(self) -> list[dict[str, str]]:
        """Return the turns as plain values."""
        return [{"role": turn.role, "content": turn.content} for turn in self.messages]


_ADVICE = {
    "stream": "`stream` is not supported here; leave it out or set it to false",
    "n": "`n` must be 1; send the request again for another answer, which will be the same",
}


def read_request(body: bytes) -> ChatRequest:
    """Check a request's body.

    Raises:
        Refused: 400 with the first thing that is wrong.
    """
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not valid JSON; send one JSON object") from None
    if not isinstance(content, dict):
        raise Refused(400, "the body must be a JSON object with `model` and `messages`")
    try:
        return ChatRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        message = _ADVICE.get(param) or f"`{param}`: {first['msg'].removeprefix('Value error, ')}"
        raise Refused(400, message, param=param, code="invalid_value") from None


def too_long(n_tokens: int, max_positions: int) -> Refused:
    """Return the refusal of a prompt that does not fit."""
    return Refused(
        400,
        f"this model's context holds {max_positions} tokens; prompt and answer ask for about "
        f"{n_tokens}: shorten the messages or lower max_tokens",
        param="messages",
        code="context_length_exceeded",
    )


def over_limit(message: str, retry_after_seconds: float | None) -> Refused:
    """Return a 429; without a time it gives no hint when to come back."""
    hint = {}
    if retry_after_seconds is not None:
        hint["retry-after"] = str(max(1, round(retry_after_seconds + 0.499)))
        hint["retry-after-ms"] = str(max(1, round(retry_after_seconds * 1000 + 0.499)))
    return Refused(429, message, kind="requests", code="rate_limit_exceeded", headers=hint)


def completion(
    number: int, created: int, answer: Answer, *, content: str | None, finish_reason: str
) -> dict[str, Any]:
    """Return the document of a finished request."""
    return {
        "id": f"chatcmpl-demo-{number}",
        "object": "chat.completion",
        "created": created,
        "model": MODEL,
        "system_fingerprint": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
    }
