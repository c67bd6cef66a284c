"""Composition root of the runner process of a cluster: no API, no engine, only the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError

from instructzero.errors import InvalidRequest
from services import web
from services.optimizer import failpoints, store
from services.optimizer.clients import HttpGenerator, HttpScorer
from services.optimizer.database import Database, ensure_schema, open_database, sqlite_path
from services.optimizer.job_run import LoopDeps
from services.optimizer.queue_figures import read_queue
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings


@dataclass(frozen=True)
class RunnerProcess:
    """A runner, and the application that tells an orchestrator how it is."""

    runner: Runner
    probes: FastAPI


@asynccontextmanager
async def open_runner(
    settings: Settings, *, generator_url: str, scorer_url: str
) -> AsyncIterator[RunnerProcess]:
    """Open a runner of a shared database.

    Raises:
        InvalidRequest: the database is a file, or its schema is not this version's.
    """
    failpoints.arm(settings.fail_points)
    url = settings.database_url.get_secret_value()
    if sqlite_path(url) is not None:
        raise InvalidRequest(
            "a runner process needs Postgres; for one machine use `instructzero serve`, "
            "which runs jobs on a SQLite file itself"
        )
    await asyncio.to_thread(ensure_schema, url, embedded=False)
    async with AsyncExitStack() as stack:
        database = open_database(url, pool_size=settings.jobs_at_once + 2)
        stack.push_async_callback(database.close)
        generator = HttpGenerator(
            generator_url,
            in_flight=settings.generator_in_flight,
            token=settings.generator_token,
        )
        stack.push_async_callback(generator.aclose)
        scorer = HttpScorer(scorer_url, token=settings.scorer_token)
        stack.push_async_callback(scorer.aclose)
        runner = Runner(LoopDeps(database, generator, scorer, settings))
        yield RunnerProcess(runner, _probes(database))


def _probes(database: Database) -> FastAPI:
    app = FastAPI(
        title="InstructZero runner",
        version=web.product_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )

    async def ready() -> Mapping[str, str]:
        try:
            async with asyncio.timeout(3):
                await store.ping(database.reads)
        except (OSError, TimeoutError, DBAPIError):
            return {"database": "does not answer"}
        return {"database": "ok"}

    async def before_scrape() -> None:
        await read_queue(database)

    return web.install(app, ready=ready, before_scrape=before_scrape)
