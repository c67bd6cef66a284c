"""`POST /v1/scores`: a request in, NDJSON out, one line an example as its answer arrives.

Plain ASGI, because thousands of these requests wait at the same time for a rate limit, and what a
framework keeps for a streaming response is most of what each of them would cost.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from instructzero.contracts import ScoreCondition, ScoreRequest
from instructzero.errors import InstructZeroError, InvalidRequest, UnsupportedMediaType
from services import web
from services.scorer.conditions import Condition
from services.scorer.lines import ScoreStream
from services.scorer.scoring import ScorerPool
from services.scorer.settings import Settings

PATH: Final = "/v1/scores"
NDJSON: Final = b"application/x-ndjson"
QUIET_SECONDS: Final = (20.0, 30.0)
"""After so long without a line the last condition is repeated, so that no proxy hangs up."""


class HungUp(Exception):
    """The caller closed the connection before its request was whole."""


def is_asked(scope: Scope) -> bool:
    """Return whether a request is for `POST /v1/scores`."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return bool(scope["path"] == PATH)


class ScoresEndpoint:
    """ASGI application that answers `POST /v1/scores`."""

    def __init__(self, pool: ScorerPool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: start to score, then wait for the caller to have or want no more."""
        web.name_route(scope, PATH)
        started = await self._start(scope, receive)
        if not isinstance(started, ScoreStream):
            if started is not None:
                await started(scope, receive, send)
            return
        delivery = Delivery(started, send)
        try:
            await delivery.begin()
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            delivery.check()
            raise
        finally:
            delivery.stop()

    async def _start(self, scope: Scope, receive: Receive) -> ScoreStream | ASGIApp | None:
        """Return the lines to come; else the answer that says why there are none, if one hears."""
        request_id = scope["state"]["request_id"]
        try:
            return self._pool.begin(await self._read(scope, receive))
        except HungUp:
            return None
        except InstructZeroError as error:
            return web.refusal(request_id, error)
        except Exception as error:  # noqa: BLE001 - a bug is logged, and the caller told so
            return web.bug(request_id, error)

    async def _read(self, scope: Scope, receive: Receive) -> ScoreRequest:
        headers = Headers(scope=scope)
        web.check_token(self._settings.token, headers.get("authorization", ""))
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page in a browser cannot send this unasked
            raise UnsupportedMediaType("send JSON: Content-Type: application/json")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HungUp
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        try:
            return ScoreRequest.model_validate_json(bytes(body))
        except ValidationError as error:
            problems = web.field_problems([dict(item) for item in error.errors()])
            first = problems[0]
            detail = f"{first.pointer or 'body'}: {first.detail}"
        raise InvalidRequest(detail, errors=problems)


class Delivery:
    """Brings the lines of one request to its caller, no faster than the caller reads.

    A line starts a task that sends all there is and ends; between lines there is none.
    """

    __slots__ = ("_condition", "_failure", "_reader", "_send", "_sending", "_stream", "_timer")

    def __init__(self, stream: ScoreStream, send: Send) -> None:
        self._stream = stream
        self._send = send
        self._reader = asyncio.current_task()
        self._sending: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._condition: Condition | None = None
        self._failure: Exception | None = None

    async def begin(self) -> None:
        """Send the head of the answer, and from now on each line that comes."""
        headers = [(b"content-type", NDJSON)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._rest()
        self._stream.tell(self._wake)

    def check(self) -> None:
        """Raise why the lines could not be brought to their end, if that is so."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop scoring and sending: nobody reads any more."""
        self._stream.tell(None)
        self._stream.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def _wake(self) -> None:
        if self._sending is None:
            if self._timer is not None:
                self._timer.cancel()
            self._sending = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        """Send what there is, which may be the end: then nothing is sent after it."""
        try:
            while (line := self._stream.take()) is not None:
                if isinstance(line, ScoreCondition):
                    self._condition = line.condition
                body = line.model_dump_json().encode() + b"\n"
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
            if self._stream.is_over:
                self._stream.check()
                self._stream.tell(None)
                await self._send({"type": "http.response.body", "body": b""})
                return
        except Exception as error:  # noqa: BLE001 - who waits for the caller raises it
            self._failure = error
            if self._reader is not None:
                self._reader.cancel()  # it waits for the caller alone
            return
        self._sending = None
        self._rest()

    def _rest(self) -> None:
        """Wait for the next line, or for the moment when the quiet has lasted too long."""
        seconds = random.uniform(*QUIET_SECONDS)  # noqa: S311 - spreads them
        self._timer = asyncio.get_running_loop().call_later(seconds, self._repeat)

    def _repeat(self) -> None:
        self._stream.put_condition(self._condition)
