"""Every way in which a target misbehaves, as it looks on the wire."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

from aiohttp import web

from tests.scorer.fake_target import Respond, Seen, completion, error

Effect = Literal["retry", "wait", "stops_job", "stops_example"]
TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True)
class Fault:
    """One row: what the target does, what the scorer says of it and does about it."""

    respond: Respond
    code: str
    effect: Effect
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def condition(self) -> str:
        """What a job shows while it waits for this to pass."""
        return "rate_limited" if self.effect == "wait" else "target_unavailable"

    @property
    def passes(self) -> bool:
        return self.effect in {"retry", "wait"}


def refusing(status: int, code: str = "", **headers: str) -> Respond:
    async def respond(_: Seen, __: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return error(status, code, headers=named)

    return respond


def saying(body: bytes | str, status: int = 200, kind: str = "application/json") -> Respond:
    async def respond(_: Seen, __: web.Request) -> web.Response:
        content = body.encode() if isinstance(body, str) else body
        return web.Response(body=content, status=status, content_type=kind)

    return respond


async def too_many_until_a_date(_: Seen, __: web.Request) -> web.Response:
    until = datetime.now(UTC) + timedelta(seconds=2)  # a date has whole seconds
    return error(429, headers={"retry-after": format_datetime(until, usegmt=True)})


async def reset_in_the_body(_: Seen, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "5000"})
    await response.prepare(request)
    await response.write(b'{"choices": [{"index": 0, "message": {"content": "wor')
    assert request.transport is not None
    request.transport.abort()
    return response


async def reset_at_once(_: Seen, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def slow_first_byte(_: Seen, __: web.Request) -> web.Response:
    await asyncio.sleep(TIMEOUT_SECONDS * 2)
    return completion("word 0")


async def endless_drip(_: Seen, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(TIMEOUT_SECONDS / 20)


async def endless_flood(_: Seen, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


async def packed_body(_: Seen, __: web.Request) -> web.Response:
    response = completion("word 0")
    response.enable_compression(web.ContentCoding.gzip)
    response.headers["content-encoding"] = "gzip"
    return response


HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
WHOLE = json.dumps({"choices": [{"index": 0, "message": {"content": "word 0"}}]})
LIMITED, BROKEN = ("rate_limited", "wait"), ("broken_answer", "retry")

FAULTS: dict[str, Fault] = {
    "429 without a hint": Fault(refusing(429, "rate_limit_exceeded"), *LIMITED),
    "429 with seconds": Fault(refusing(429, retry_after="1"), *LIMITED),
    "429 with a date": Fault(too_many_until_a_date, *LIMITED),
    "429 with milliseconds": Fault(refusing(429, retry_after_ms="700"), *LIMITED),
    "500": Fault(refusing(500), "target_error", "retry"),
    "502 with HTML": Fault(saying(HTML, 502, "text/html"), "target_error", "retry"),
    "503 with a hint": Fault(refusing(503, retry_after="1"), "target_error", "retry"),
    "401": Fault(refusing(401, "invalid_api_key"), "target_unauthorized", "stops_job"),
    "403": Fault(refusing(403), "target_forbidden", "stops_job"),
    "404 model": Fault(refusing(404, "model_not_found"), "target_not_found", "stops_job"),
    "insufficient quota": Fault(
        refusing(429, "insufficient_quota", retry_after="1"), "insufficient_quota", "stops_job"
    ),
    "402": Fault(refusing(402), "insufficient_quota", "stops_job"),
    "400": Fault(refusing(400, "invalid_request_error"), "request_refused", "stops_example"),
    "unknown parameter": Fault(
        refusing(400, "unsupported_parameter"), "target_misconfigured", "stops_job"
    ),
    "connection reset at once": Fault(reset_at_once, "connection_lost", "retry"),
    "reset in the body": Fault(reset_in_the_body, "connection_lost", "retry"),
    "truncated JSON": Fault(saying(WHOLE[:-20]), *BROKEN),
    "HTML with 200": Fault(saying(HTML, kind="text/html"), *BROKEN),
    "empty body": Fault(saying(""), *BROKEN),
    "bytes that are no text": Fault(saying(b"\xff\xfe\x00"), *BROKEN),
    "JSON nested too deeply": Fault(saying("[" * 100_000), *BROKEN),
    "an error with 200": Fault(saying('{"error": {"message": "upstream"}}'), *BROKEN),
    "too many with 200": Fault(saying('{"error": {"code": "rate_limit_exceeded"}}'), *LIMITED),
    "empty choices": Fault(saying('{"choices": [], "usage": {}}'), *BROKEN),
    "no message": Fault(saying('{"choices": [{"index": 0}]}'), *BROKEN),
    "content null": Fault(saying('{"choices": [{"message": {"content": null}}]}'), *BROKEN),
    "content a list": Fault(saying('{"choices": [{"message": {"content": ["a"]}}]}'), *BROKEN),
    "slow first byte": Fault(
        slow_first_byte, "target_timeout", "retry", {"timeout_seconds": TIMEOUT_SECONDS}
    ),
    "endless drip": Fault(
        endless_drip, "target_timeout", "retry", {"timeout_seconds": TIMEOUT_SECONDS}
    ),
    "endless flood": Fault(endless_flood, "answer_too_large", "retry"),
    "huge body": Fault(saying(b" " * 3_000_000), "answer_too_large", "retry"),
    "packed body": Fault(packed_body, "connection_lost", "retry"),
    "redirect": Fault(
        refusing(307, location="http://127.0.0.1:9/v1/chat/completions"),
        "target_redirected",
        "stops_job",
    ),
}


def at_first(fault: Fault, n: int, then: Respond) -> Respond:
    """Misbehave in the first n requests."""

    async def respond(seen: Seen, request: web.Request) -> web.StreamResponse:
        return await (fault.respond if seen.number < n else then)(seen, request)

    return respond
