"""The scorer's small routes: the registered targets and whether they answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from instructzero.contracts import TargetView
from services import web
from services.scorer.scoring import ScorerPool
from services.scorer.settings import Settings

router = APIRouter(prefix="/v1", tags=["scorer"])


class TargetStatus(BaseModel):
    """Whether a target answers a request that costs nothing."""

    is_up: bool
    code: str | None = None
    message: str | None = None


async def _authorise(request: Request) -> None:
    settings: Settings = request.app.state.settings
    web.check_token(settings.token, request.headers.get("authorization", ""))


async def _pool(request: Request) -> ScorerPool:
    pool: ScorerPool = request.app.state.pool
    return pool


Authorised = Depends(_authorise)
Pool = Annotated[ScorerPool, Depends(_pool)]


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
