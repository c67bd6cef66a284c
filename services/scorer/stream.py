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
from services.scorer.lines import ScoreStream
from services.scorer.scoring import ScorerPool
from services.scorer.settings import Settings

PATH: Final = "/v1/scores"
NDJSON: Final = b"application/x-ndjson"
QUIET_SECONDS: Final = (20.0, 30.0)
"""After so long without a line the last condition is repeated, so that no proxy hangs up."""


class HungUp(Exception):
    """The caller closed the connection before its request was whole."""


class ScoresEndpoint:
    """ASGI middleware that answers `POST /v1/scores` and passes on everything else."""

    def __init__(self, app: ASGIApp, *, pool: ScorerPool, settings: Settings) -> None:
        self._app = app
        self._pool = pool
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        web.name_route(scope, PATH)
        try:
            stream = self._pool.begin(await self._read(scope, receive))
        except HungUp:
            return
        except InstructZeroError as error:
            refusal = web.refusal(scope["state"]["request_id"], error)
            await refusal(scope, receive, send)
            return
        watch = asyncio.create_task(_cancel_when_hung_up(stream, receive))
        try:
            await _write(stream, send)
        finally:
            stream.cancel()
            watch.cancel()

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


async def _write(stream: ScoreStream, send: Send) -> None:
    """Send the lines as they come."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", NDJSON)]}
    )
    condition = ScoreCondition(condition=None)
    while True:
        try:
            async with asyncio.timeout(random.uniform(*QUIET_SECONDS)):  # noqa: S311 - spreads them
                line = await stream.next()
        except TimeoutError:
            line = condition
        if line is None:
            break
        if isinstance(line, ScoreCondition):
            condition = line
        body = line.model_dump_json().encode() + b"\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _cancel_when_hung_up(stream: ScoreStream, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.cancel()
