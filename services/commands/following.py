"""Watching one job from the outside until it stops moving."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from instructzero.client import AsyncClient
from instructzero.contracts import Job, JobStatus

WAIT_SECONDS = 2.0
"""How long one look waits for a change; short, because the time that is left moves by itself."""
STILL = frozenset({JobStatus.PAUSED})


async def follow(
    client: AsyncClient, job_id: str, *, stop: Callable[[], bool] = lambda: False
) -> AsyncIterator[Job]:
    """Yield a job whenever it changed, until it is finished or paused, or `stop` says so.

    Raises:
        NotFound: there is no such job.
    """
    job = await client.get(job_id)
    while True:
        yield job
        if job.status.is_finished or job.status in STILL or stop():
            return
        job = await client.get(job_id, wait_seconds=WAIT_SECONDS, newer_than=job.version)
