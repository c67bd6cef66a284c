"""Jobs of the real loop, store and runner, on a scorer of the test's choice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr
from sqlalchemy import select

from services.optimizer.buyer import Scorer
from services.optimizer.database import Database, open_database
from services.optimizer.job_run import LoopDeps
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings
from services.optimizer.tables import EvaluationRow, EventRow, JobRow
from services.optimizer.writer import Generator
from tests.optimizer.worlds import PlainGenerator, make_spec


class Jobs:
    """A database with one job at a time."""

    def __init__(self, database: Database, deps: LoopDeps) -> None:
        self._database = database
        self._deps = deps

    async def run(self, **changes: Any) -> JobRow:
        """Run one job to its end and return its row."""
        spec = make_spec(**{"target": "fake", "budget": {"calls": 24}, **changes})
        async with self._database.writes.begin() as session:
            session.add(JobRow.of("job_1", spec))
        runner = Runner(self._deps, take_over=False)
        assert await runner.run_one("job_1")
        runner.close()
        return await self.row()

    async def row(self) -> JobRow:
        async with self._database.reads() as session:
            row = await session.get(JobRow, "job_1")
        assert row is not None
        return row

    async def conditions(self) -> set[str]:
        """Every condition that the job has shown."""
        async with self._database.reads() as session:
            events = await session.scalars(
                select(EventRow.data).where(EventRow.type == "condition_on")
            )
        return {str(data["condition"]) for data in events}

    async def evaluations(self) -> list[EvaluationRow]:
        async with self._database.reads() as session:
            return list(await session.scalars(select(EvaluationRow)))


@asynccontextmanager
async def open_jobs(
    url: str, scorer: Scorer, generator: Generator | None = None
) -> AsyncIterator[Jobs]:
    """Open an empty database for jobs."""
    database = open_database(url)
    settings = Settings(database_url=SecretStr(url), lease_seconds=30.0)
    try:
        yield Jobs(database, LoopDeps(database, generator or PlainGenerator(), scorer, settings))
    finally:
        await database.close()
