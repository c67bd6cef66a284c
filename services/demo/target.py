"""The demo target: the demo model behind OpenAI's chat protocol, with limits and faults on request.

For rehearsals, tests and benchmarks that must not cost money. Answers are greedy and depend on the
messages alone.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from instructzero.errors import InvalidRequest, Unavailable
from services.demo.desk import CHAT_PATH, Desk, Journal, TargetOptions, check_model
from services.demo.faults import parse_fault
from services.demo.protocol import MODEL, Refused

__all__ = ["TargetOptions", "create_app", "parse_fault", "serve_target"]

_START_SECONDS = 60.0


def create_app(options: TargetOptions) -> FastAPI:
    """Return the server.

    Raises:
        InvalidRequest: faults or log file make no sense.
    """
    desk = Desk(options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            desk.close()

    app = FastAPI(
        title="InstructZero demo target", lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(Refused, _refuse)
    app.add_middleware(Journal, desk=desk)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, object]:
        desk.check_key(request)
        return {"object": "list", "data": [_MODEL_CARD]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, object]:
        desk.check_key(request)
        check_model(name)
        return _MODEL_CARD

    @app.post(CHAT_PATH)
    async def chat(request: Request) -> Response:
        return await desk.serve(request, request.scope["entry"])

    return app


@asynccontextmanager
async def serve_target(
    options: TargetOptions, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve until the block ends, in a thread with its own loop; yield the base URL without /v1.

    Raises:
        InvalidRequest: the options make no sense, or the address cannot be used.
        Unavailable: the server did not start.
    """
    try:
        listener = socket.create_server((host, port), backlog=2048)
    except (OSError, OverflowError) as error:
        raise InvalidRequest(
            f"cannot listen on {host}:{port} ({error}); choose another port",
            reason="address_not_available",
        ) from error
    with closing(listener):
        config = uvicorn.Config(
            create_app(options),
            log_config=None,  # the level would hold for every other server of the process too
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="demo-target", daemon=True
        )
        thread.start()
        try:
            await _until_started(server, thread)
            address, bound = listener.getsockname()[:2]
            yield f"http://[{address}]:{bound}" if ":" in address else f"http://{address}:{bound}"
        finally:
            server.should_exit = True
            await asyncio.to_thread(thread.join, 10)


async def _until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise Unavailable("the demo target did not start")
        await asyncio.sleep(0.01)


_MODEL_CARD: dict[str, object] = {
    "id": MODEL,
    "object": "model",
    "created": 0,
    "owned_by": "instructzero",
}


async def _refuse(_: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    return error.response()


async def _refuse_route(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = (
        "there is nothing here; the server speaks POST /v1/chat/completions and GET /v1/models"
    )
    return Refused(error.status_code, message).response()
