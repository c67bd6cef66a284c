"""The scorer's routes: scores as NDJSON, the registered targets."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from instructzero.contracts import ScoreCondition, ScoreRequest, TargetView
from instructzero.errors import Unauthorized
from services.scorer.scoring import ScorerPool
from services.scorer.settings import Settings

NDJSON = "application/x-ndjson"
QUIET_SECONDS = 10.0
"""After this long without a line the last condition is repeated, so that no proxy hangs up."""

router = APIRouter(prefix="/v1", tags=["scorer"])


class TargetStatus(BaseModel):
    """Whether a target answers a request that costs nothing."""

    is_up: bool
    code: str | None = None
    message: str | None = None


async def _authorise(request: Request) -> None:
    settings: Settings = request.app.state.settings
    wanted = settings.token.get_secret_value().encode() if settings.token else b""
    if not wanted:
        return
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent.encode(), wanted):
        raise Unauthorized("send the scorer's token: Authorization: Bearer ...")


def _pool(request: Request) -> ScorerPool:
    pool: ScorerPool = request.app.state.pool
    return pool


Authorised = Depends(_authorise)
Pool = Annotated[ScorerPool, Depends(_pool)]


@router.post("/scores", dependencies=[Authorised], response_class=StreamingResponse)
async def create_scores(body: ScoreRequest, pool: Pool) -> StreamingResponse:
    """Score one instruction on examples: one line an example, as its answer arrives."""
    pool.check(body)
    return StreamingResponse(_stream(pool, body), media_type=NDJSON)


@router.get("/targets", dependencies=[Authorised])
async def list_targets(pool: Pool) -> tuple[TargetView, ...]:
    """List what a job may name as its target."""
    return await pool.targets()


@router.get("/targets/{name}/status", dependencies=[Authorised])
async def show_target_status(name: str, pool: Pool) -> TargetStatus:
    """Ask one target whether it is there, without a paid call."""
    failure = await pool.probe(name)
    if failure is None:
        return TargetStatus(is_up=True)
    return TargetStatus(is_up=False, code=failure.code, message=failure.message)


async def _stream(pool: ScorerPool, body: ScoreRequest) -> AsyncIterator[bytes]:
    stream = pool.begin(body)  # here, so that a reader who is already gone begins nothing
    condition = ScoreCondition(condition=None)
    try:
        while True:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    line = await stream.next()
            except TimeoutError:
                line = condition
            if line is None:
                return
            if isinstance(line, ScoreCondition):
                condition = line
            yield line.model_dump_json().encode() + b"\n"
    finally:
        stream.cancel()
