"""The generator's routes: instructions for latent points, and which models it serves."""

from __future__ import annotations

import asyncio
import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from instructzero.contracts import GenerateRequest, GenerateResponse
from instructzero.errors import GeneratorUnavailable, Unauthorized
from services.generator.service import GeneratorService
from services.generator.settings import GeneratorSettings

router = APIRouter(prefix="/v1", tags=["generator"])


class ServedModel(BaseModel):
    """A name that a request may give as `model`."""

    id: str


class ServedModels(BaseModel):
    """Every name that a request may give as `model`."""

    data: tuple[ServedModel, ...]


async def _authorise(request: Request) -> None:
    settings: GeneratorSettings = request.app.state.settings
    wanted = settings.token.get_secret_value().encode() if settings.token else b""
    if not wanted:
        return
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent.encode(), wanted):
        raise Unauthorized("send the generator's token: Authorization: Bearer ...")


def _service(request: Request) -> GeneratorService:
    service: GeneratorService = request.app.state.service
    return service


Authorised = Depends(_authorise)
Service = Annotated[GeneratorService, Depends(_service)]


@router.post("/instructions", dependencies=[Authorised])
async def create_instructions(
    body: GenerateRequest, request: Request, service: Service
) -> GenerateResponse:
    """Write one instruction per latent point, in order."""
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


@router.get("/models", dependencies=[Authorised])
async def list_models(service: Service) -> ServedModels:
    """List what a request may name as its model."""
    return ServedModels(data=tuple(ServedModel(id=name) for name in service.names()))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
