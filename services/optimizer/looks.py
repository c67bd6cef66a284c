"""Looking at jobs for those who poll: who asks while one look is under way shares the next."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeVar

from instructzero.errors import NotFound
from services.gathered import Gathered
from services.optimizer import reads
from services.optimizer.database import Database
from services.optimizer.reads import Mark
from services.optimizer.sessions import transaction_in_thread
from services.optimizer.tables import JobRow

T = TypeVar("T")


class Looks:
    """Rows and marks of jobs as committed no earlier than they were asked for.

    A transaction of its own for each poll would cost several times what the query does. All may
    raise StoreUnavailable: the database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows: Gathered[None, JobRow] = Gathered(self._read_rows)
        self._marks: Gathered[None, Mark] = Gathered(self._read_marks)

    async def job(self, job_id: str) -> JobRow:
        """Return a job's row, which many may hold: it is only for reading.

        Raises:
            NotFound: there is no such job.
        """
        return _found(await self._rows.ask(job_id, None))

    async def mark(self, job_id: str) -> Mark:
        """Return what changes when a job changes.

        Raises:
            NotFound: there is no such job.
        """
        return _found(await self._marks.ask(job_id, None))

    async def marks(self, job_ids: Sequence[str]) -> Mapping[str, Mark]:
        """Return the marks of those jobs that exist."""
        return await asyncio.to_thread(self._read_marks, dict.fromkeys(job_ids))

    def _read_rows(self, wanted: Mapping[str, None]) -> Mapping[str, JobRow]:
        with transaction_in_thread(self._database.thread_reads) as session:
            return reads.read_jobs(session, list(wanted))

    def _read_marks(self, wanted: Mapping[str, None]) -> Mapping[str, Mark]:
        with transaction_in_thread(self._database.thread_reads) as session:
            return reads.read_marks(session, list(wanted))


def _found(row: T | None) -> T:
    if row is None:
        raise NotFound("there is no such job")
    return row
