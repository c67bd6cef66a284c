"""Composition root of the runner process of a cluster: no API, no engine, only the loop."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

from instructzero.errors import InvalidRequest
from services.optimizer import failpoints
from services.optimizer.clients import HttpGenerator, HttpScorer
from services.optimizer.database import ensure_schema, open_database, sqlite_path
from services.optimizer.loop import LoopDeps
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings


async def run(settings: Settings, *, generator_url: str, scorer_url: str) -> None:
    """Claim and run jobs until SIGTERM or SIGINT, then finish what is in flight.

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
        generator = HttpGenerator(generator_url, in_flight=settings.generator_in_flight)
        stack.push_async_callback(generator.aclose)
        scorer = HttpScorer(scorer_url)
        stack.push_async_callback(scorer.aclose)
        runner = Runner(LoopDeps(database, generator, scorer, settings))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, runner.drain)
        await runner.run()
