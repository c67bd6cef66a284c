"""What every route works with: its dependencies, its session, and the body of a new job.

All of it is `async def`, also where nothing is awaited: the framework would call it in a thread
otherwise, which costs more than the rest of a poll.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import ClientDisconnect

from instructzero.contracts import MetricSpec
from instructzero.errors import InvalidRequest, NotFound, UnsupportedMediaType
from services.optimizer.buyer import Scorer
from services.optimizer.database import Database
from services.optimizer.looks import Looks
from services.optimizer.sessions import transaction
from services.optimizer.settings import Settings
from services.optimizer.spec_json import SentSpec, parse_spec
from services.optimizer.watch import Watch

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")


@runtime_checkable
class ListsModels(Protocol):
    """A generator that can say which models it serves."""

    async def models(self) -> tuple[str, ...] | None:
        """Return the models it serves, None if it does not say."""
        ...


@dataclass(frozen=True)
class ApiDeps:
    """What the API works with; all of it stays its giver's to close.

    Attributes:
        database: the jobs.
        scorer: says which targets there are.
        generator: says which models there are, if it is a `ListsModels`; None: not known here.
        settings: API keys.
        check_metric: says why expected outputs cannot be used with a metric, None if they can.
        ready: the check behind /readyz.
    """

    database: Database
    scorer: Scorer
    generator: object | None
    settings: Settings
    check_metric: Callable[[MetricSpec, Sequence[str]], str | None]
    ready: Callable[[], Awaitable[Mapping[str, str]]]


async def deps_of(request: Request) -> ApiDeps:
    """Return the app's dependencies; they are no lifespan state, so no lifespan need run."""
    deps: ApiDeps = request.app.state.deps
    return deps


async def looks_of(request: Request) -> Looks:
    """Return what looks at jobs for those who poll."""
    looks: Looks = request.app.state.looks
    return looks


async def watch_of(request: Request) -> Watch:
    """Return what waits for jobs to change."""
    watch: Watch = request.app.state.watch
    return watch


Deps = Annotated[ApiDeps, Depends(deps_of)]
Looking = Annotated[Looks, Depends(looks_of)]
Watching = Annotated[Watch, Depends(watch_of)]


async def open_reads(deps: Deps) -> AsyncIterator[AsyncSession]:
    """Give a request a session that only reads."""
    async with transaction(deps.database.reads) as session:
        yield session


async def open_writes(deps: Deps) -> AsyncIterator[AsyncSession]:
    """Give a request one transaction, committed before the response."""
    async with transaction(deps.database.writes) as session:
        yield session


Reading = Annotated[AsyncSession, Depends(open_reads, scope="function")]
Writing = Annotated[AsyncSession, Depends(open_writes, scope="function")]


async def checked_id(job_id: str) -> str:
    """Refuse what cannot be a job's id before the database sees it.

    Raises:
        NotFound: it is none.
    """
    if not JOB_ID.fullmatch(job_id):
        raise NotFound("there is no such job")
    return job_id


JobId = Annotated[str, Depends(checked_id)]


async def read_spec(request: Request) -> SentSpec:
    """Read a job spec from the body, off the event loop: it may be large.

    Raises:
        UnsupportedMediaType: the body is not declared as JSON.
        InvalidSpec: it is not JSON, or not a job spec; names the fields.
        InvalidRequest: the caller hung up before the end of the body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(
            "send the job spec as JSON (Content-Type: application/json); "
            "`instructzero submit` turns a YAML file into it"
        )
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise InvalidRequest("the body ended early") from error
    return await asyncio.to_thread(parse_spec, raw)


Sent = Annotated[SentSpec, Depends(read_spec)]
