"""A job's whole record, and the report made from it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from instructzero.client import AsyncClient
from instructzero.contracts import Event, Job, Result, TrialView
from instructzero.errors import InvalidRequest

REPORTS = Path("runs")


@dataclass(frozen=True)
class Record:
    """All that is known of a job; `result` is None while it has none."""

    job: Job
    result: Result | None
    trials: tuple[TrialView, ...]
    events: tuple[Event, ...]


async def read_record(client: AsyncClient, job_id: str) -> Record:
    """Read all that is known of a job.

    Raises:
        NotFound: there is no such job.
    """
    job = await client.get(job_id)
    result = await client.result(job_id) if job.status.is_finished else None
    trials = await client.trials(job_id)
    return Record(job, result, tuple(trials), tuple(await client.events(job_id)))


async def write_report(record: Record, path: Path | None) -> Path:
    """Write a job's report and return where it is; the default is runs/JOB_ID.html.

    Raises:
        InvalidRequest: it cannot be written there.
    """
    from services.report.page import render_report  # loads matplotlib

    where = path or REPORTS / f"{record.job.id}.html"
    page = await asyncio.to_thread(
        render_report, record.job, record.result, record.trials, record.events
    )
    try:
        return await save_page(page, where)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{error.detail}; "
            f"`instructzero report {record.job.id} --output FILE.html` writes it elsewhere"
        ) from error


async def save_page(page: str, where: Path) -> Path:
    """Write a page, its folder too, and return where it is.

    Raises:
        InvalidRequest: it cannot be written there.
    """
    try:
        await asyncio.to_thread(where.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(where.write_text, page, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(
            f"the report cannot be written to {where} ({error.strerror})"
        ) from error
    return where
