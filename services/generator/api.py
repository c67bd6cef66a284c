"""The generator over HTTP: instructions for latent points, and which models it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from instructzero.contracts import GenerateRequest, GenerateResponse, InstructionLine
from instructzero.errors import GeneratorUnavailable, InstructZeroError
from services import web
from services.generator.line_feed import NDJSON, LineFeed
from services.generator.settings import GeneratorSettings

MAX_BODY_BYTES = 8 * 1024 * 1024
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
router = APIRouter(prefix="/v1", tags=["generator"])


class InstructionService(Protocol):
    """What stands behind the routes: one model in this process, or several in a cluster."""

    def names(self) -> tuple[str, ...]:
        """Return what a request may call the model."""
        ...

    async def states(self) -> Mapping[str, str]:
        """Return for each part `ok`, or what is wrong."""
        ...

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Return one instruction per point; cancelling the task ends the work.

        Raises:
            InstructZeroError: there is no answer; its class says whether a retry can help.
        """
        ...

    def stream(self, request: GenerateRequest) -> AsyncGenerator[tuple[InstructionLine, ...], None]:
        """Yield the same as they are finished; closing the generator ends the work."""
        ...


class ServedModel(BaseModel):
    """A name that a request may give as `model`."""

    id: str


class ServedModels(BaseModel):
    """Every name that a request may give as `model`."""

    data: tuple[ServedModel, ...]


async def _authorise(request: Request) -> None:
    settings: GeneratorSettings = request.app.state.settings
    web.check_token(settings.token, request.headers.get("authorization", ""))


async def _service(request: Request) -> InstructionService:
    service: InstructionService = request.app.state.service
    return service


Authorised = Depends(_authorise)
Service = Annotated[InstructionService, Depends(_service)]


@router.post(
    "/instructions",
    dependencies=[Authorised],
    response_model=GenerateResponse,
    responses={200: {"content": {NDJSON: {}}, "description": "a line a point, if asked for"}},
)
async def create_instructions(
    body: GenerateRequest, request: Request, service: Service
) -> GenerateResponse | StreamingResponse:
    """Write one instruction per latent point: in order, or as NDJSON lines when each is ready."""
    if NDJSON in request.headers.get("accept", ""):
        return await _stream(body, request, service)
    work = asyncio.create_task(service.generate(body))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        # Nobody reads this answer; it ends the request, and the work with it.
        raise GeneratorUnavailable("the client went away")
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.wait({work, gone})


async def _stream(
    body: GenerateRequest, request: Request, service: InstructionService
) -> StreamingResponse:
    feed = LineFeed(service.stream(body))
    gone = asyncio.create_task(_disconnected(request))
    gone.add_done_callback(lambda done: None if done.cancelled() else feed.cancel())
    try:
        first = await feed.next()  # what is refused is refused with a status of its own
    finally:
        gone.cancel()  # from here on the response looks out itself
    if isinstance(first, InstructZeroError):
        raise first
    lines = feed.encoded(first, web.request_id_of(request))
    return StreamingResponse(lines, media_type=NDJSON)


@router.get("/models", dependencies=[Authorised])
async def list_models(service: Service) -> ServedModels:
    """List what a request may name as its model."""
    return ServedModels(data=tuple(ServedModel(id=name) for name in service.names()))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


def build_app(
    settings: GeneratorSettings, service: InstructionService, lifespan: Lifespan = _no_lifespan
) -> FastAPI:
    """Put a service behind the routes."""
    app = FastAPI(
        title="InstructZero generator",
        version=web.product_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.settings = settings
    app.state.service = service
    app.include_router(router)
    return web.install(app, ready=service.states, max_body_bytes=MAX_BODY_BYTES)
