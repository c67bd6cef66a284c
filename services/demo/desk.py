"""What the demo target does with one chat request: key, limits, faults, answer, log line."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Mapping
from concurrent.futures import Executor as Pool
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructzero.errors import InvalidRequest
from services.demo import MODEL_PATH, protocol
from services.demo.executor import Answer, Executor, TooLong, one_thread_pool
from services.demo.faults import (
    FOREVER_SECONDS,
    CutResponse,
    Fault,
    FaultPlan,
    SlowResponse,
    client_stays,
)
from services.demo.limits import Limits
from services.demo.network import MAX_POSITIONS
from services.demo.protocol import MODEL, ChatRequest, Refused
from services.demo.request_log import CLIENT_GONE, Entry, RequestLog

CHAT_PATH = "/v1/chat/completions"
_N_THREADS = 2


@dataclass(frozen=True)
class TargetOptions:
    """How a demo target behaves; absent limits do not limit."""

    latency_ms: float = 0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    in_flight: int | None = None
    faults: Mapping[str, float] = field(default_factory=dict)
    log: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    seed: int = 0
    model_path: Path = MODEL_PATH

    def __post_init__(self) -> None:
        """Refuse nonsense.

        Raises:
            InvalidRequest: a number is out of range.
        """
        if not 0 <= self.latency_ms <= FOREVER_SECONDS * 1000:
            raise InvalidRequest("the latency must be 0 or more milliseconds, an hour at most")
        for name in ("requests_per_minute", "tokens_per_minute", "in_flight"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} must be 1 or more; leave it out for no limit")
        if self.api_key is not None and not self.api_key:
            raise InvalidRequest("the key may not be empty; leave it out to ask for none")


class Desk:
    """Takes requests in: key, limits, faults, answer."""

    def __init__(self, options: TargetOptions) -> None:
        self.options = options
        self.plan = FaultPlan(options.faults, options.seed)
        self.limits = Limits(
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
            in_flight=options.in_flight,
        )
        self.executor = Executor(options.model_path)
        self.log = RequestLog(options.log)
        self.pool: Pool = one_thread_pool(_N_THREADS)
        self.n_requests = 0

    def open_entry(self) -> Entry:
        """Number a request."""
        self.n_requests += 1
        return Entry(datetime.now(UTC).isoformat(), self.n_requests)

    def close_entry(self, entry: Entry, scope: Scope) -> None:
        """Write a request's line."""
        keys = [self.options.api_key, _presented_key(Request(scope))]
        self.log.write(entry, [key for key in keys if key])

    def close(self) -> None:
        """Stop computing and close the log."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.log.close()

    def check_key(self, request: Request) -> None:
        """Refuse a request without the right key."""
        wanted = self.options.api_key
        given = _presented_key(request) or ""
        if wanted is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise Refused(
                401, "no API key, or a wrong one; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
            )  # fmt: skip

    async def serve(self, request: Request, entry: Entry) -> Response:
        """Serve one chat request."""
        self.check_key(request)
        wanted = protocol.read_request(await _body(request))
        entry.read(wanted.chat())
        check_model(wanted.model)
        prompt = await self._tokenize(wanted)
        entry.prompt_tokens = len(prompt)
        refusal = self.limits.enter(len(prompt) + wanted.limit)
        headers = self.limits.headers()
        if refusal is not None:
            refused = protocol.over_limit(refusal.message, refusal.retry_after_seconds)
            refused.headers |= headers
            raise refused
        try:
            response = await self._admitted(request, entry, wanted, prompt)
        except Refused as refused:
            refused.headers |= headers
            raise
        finally:
            self.limits.leave()
        response.headers.update(headers)
        return response

    async def _tokenize(self, wanted: ChatRequest) -> tuple[int, ...]:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self.pool, self.executor.prompt, wanted.chat(), wanted.limit
            )
        except TooLong as error:
            raise protocol.too_long(error.n_tokens, MAX_POSITIONS) from None

    async def _admitted(
        self, request: Request, entry: Entry, wanted: ChatRequest, prompt: tuple[int, ...]
    ) -> Response:
        fault = self.plan.of(entry.request)
        entry.fault = fault
        wait = FOREVER_SECONDS if fault is Fault.TIMEOUT else self.options.latency_ms / 1000
        if wait and not await client_stays(request, wait):
            return Response(status_code=CLIENT_GONE)  # nobody reads it
        if fault in _REFUSALS:
            raise _refusal(fault)
        answer = await asyncio.get_running_loop().run_in_executor(
            self.pool, self.executor.answer, prompt, wanted.limit, wanted.stop
        )
        return _answer(entry, answer, fault)


class Journal:
    """ASGI middleware: numbers each chat request and logs it when it ends."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self.app, self.desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != CHAT_PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        entry = scope["entry"] = self.desk.open_entry()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", f"req-demo-{entry.request}".encode()),
                ]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            self.desk.close_entry(entry, scope)


_REFUSALS = {
    Fault.RATE_LIMITED,
    Fault.RATE_LIMITED_NO_HINT,
    Fault.SERVER_ERROR,
    Fault.UNAVAILABLE,
    Fault.QUOTA,
}


def _refusal(fault: Fault | None) -> Refused:
    if fault in {Fault.RATE_LIMITED, Fault.RATE_LIMITED_NO_HINT}:
        hint = 1.0 if fault is Fault.RATE_LIMITED else None
        return protocol.over_limit("rehearsed: too many requests", hint)
    if fault is Fault.QUOTA:
        return Refused(
            429, "rehearsed: the quota is used up; check plan and billing",
            kind="insufficient_quota", code="insufficient_quota",
        )  # fmt: skip
    if fault is Fault.UNAVAILABLE:
        return Refused(503, "rehearsed: overloaded", kind="server_error", code="overloaded")
    return Refused(500, "rehearsed: the server failed", kind="server_error")


def _answer(entry: Entry, answer: Answer, fault: Fault | None) -> Response:
    content: str | None = answer.text
    reason: str = answer.finish_reason
    if fault is Fault.EMPTY:
        content = None
    elif fault is Fault.FILTER:
        content, reason = "", "content_filter"
    entry.completion_tokens = answer.completion_tokens
    document = protocol.completion(
        entry.request, int(time.time()), answer, content=content, finish_reason=reason
    )
    whole = JSONResponse(document)
    if fault is Fault.BROKEN_BODY:
        body = bytes(whole.body)
        return Response(body[: len(body) // 2], media_type="application/json")
    if fault is Fault.CUT:
        return CutResponse(whole.body, media_type="application/json")
    entry.answer = content
    if fault is Fault.SLOW:
        return SlowResponse(whole.body, media_type="application/json")
    return whole


def check_model(name: str) -> None:
    """Refuse any model but the one there is."""
    if name != MODEL:
        raise Refused(
            404, f"there is no such model here; the only one is `{MODEL}`",
            param="model", code="model_not_found",
        )  # fmt: skip


def _presented_key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


async def _body(request: Request) -> bytes:
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > protocol.MAX_BODY_BYTES:
                raise Refused(413, f"the body is larger than {protocol.MAX_BODY_BYTES} bytes")
            pieces.append(piece)
    except ClientDisconnect:
        raise Refused(CLIENT_GONE, "the client hung up") from None
    return b"".join(pieces)
