"""Commands on jobs that run somewhere else: a server, or a database that a server works on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from instructzero.client import AsyncClient
from instructzero.contracts import Job, JobStatus
from instructzero.errors import InvalidRequest
from services.commands.connection import Place, open_place
from services.commands.console import Screen
from services.commands.following import follow
from services.commands.job_files import load_job
from services.commands.record import read_record, write_report
from services.report import wording


@dataclass(frozen=True)
class SubmitRequest:
    """What `submit` was asked to do."""

    job_file: Path
    place: Place
    is_dry: bool
    is_waiting: bool
    idempotency_key: str | None
    as_json: bool


@dataclass(frozen=True)
class ListRequest:
    """What `list` was asked to show."""

    status: str | None
    labels: tuple[str, ...]
    limit: int
    cursor: str | None
    as_json: bool


@dataclass(frozen=True)
class UsageRequest:
    """What `usage` was asked to show."""

    since: str | None
    until: str | None
    group_by: str
    limit: int
    cursor: str | None
    as_json: bool


async def submit_job(request: SubmitRequest, screen: Screen) -> int:
    """Queue a job, or say what it would cost, and return the exit code.

    Raises:
        InvalidRequest: the job cannot be run as it is written.
    """
    spec = load_job(request.job_file)
    if request.is_dry:
        async with _dry_place(request.place) as client:
            found = await client.estimate(spec)
        if request.as_json:
            screen.write(found.model_dump_json(indent=2))
        else:
            screen.estimate(found.estimate)
        return 0
    async with open_place(request.place, may_create=True) as client:
        job = await client.create(spec, idempotency_key=request.idempotency_key)
        _say_who_runs_it(request.place, screen)
        if request.is_waiting:
            screen.say(f"Job {job.id}")
            return await _watch(client, job.id, screen, as_json=request.as_json)
    screen.write(job.model_dump_json(indent=2) if request.as_json else job.id)
    return 0


@asynccontextmanager
async def _dry_place(place: Place) -> AsyncIterator[AsyncClient]:
    """Open a place for an estimate, which needs no database of the user's."""
    if place.url is not None:
        async with open_place(place) as client:
            yield client
        return
    with tempfile.TemporaryDirectory(prefix="instructzero-") as folder:
        throwaway = replace(place, database=str(Path(folder) / "estimate.db"))
        async with open_place(throwaway, may_create=True) as client:
            yield client


def _say_who_runs_it(place: Place, screen: Screen) -> None:
    if place.url is None:
        options = " ".join(place.options())
        screen.say(
            f"Queued. `instructzero serve{' ' if options else ''}{options}` runs it, "
            "unless one is running on this database already."
        )


async def watch_job(place: Place, job_id: str, screen: Screen) -> int:
    """Show a job until it ends and return the exit code.

    Raises:
        NotFound: there is no such job.
    """
    async with open_place(place) as client:
        return await _watch(client, job_id, screen)


async def _watch(client: AsyncClient, job_id: str, screen: Screen, *, as_json: bool = False) -> int:
    job: Job | None = None
    with screen.progress() as progress:
        async for job in follow(client, job_id):
            progress.update(job)
    assert job is not None  # noqa: S101 - follow yields at least once
    if not job.status.is_finished:
        reason = f": {job.status_reason.message}" if job.status_reason else ""
        screen.say(f"{job.id} is {wording.STATUS_WORDS[job.status]}{reason}")
        return 1
    found = await client.result(job_id)
    if as_json:
        screen.write(found.model_dump_json(indent=2))
    else:
        screen.result(job, found)
    return 0 if job.status is JobStatus.SUCCEEDED else 1


async def show_result(place: Place, job_id: str, screen: Screen, *, as_json: bool) -> None:
    """Show a finished job's result.

    Raises:
        NotFound: there is no such job.
        Conflict: it has not ended.
    """
    async with open_place(place) as client:
        found = await client.result(job_id)
        if as_json:
            screen.write(found.model_dump_json(indent=2))
        else:
            screen.result(await client.get(job_id), found)


async def show_jobs(place: Place, request: ListRequest, screen: Screen) -> None:
    """Show one page of jobs.

    Raises:
        InvalidRequest: a label is not written as KEY=VALUE.
    """
    labels: dict[str, str] = {}
    for text in request.labels:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidRequest(f"write a label as KEY=VALUE, not {text!r}")
        labels[key] = value
    async with open_place(place) as client:
        page = await client.list(
            status=request.status, labels=labels, limit=request.limit, cursor=request.cursor
        )
    if request.as_json:
        screen.write(json.dumps(page.model_dump(mode="json")))
        return
    if not page.data:
        screen.say("No jobs.")
        return
    screen.jobs(page.data)
    if page.next_cursor is not None:
        screen.say(f"There are more: --cursor {page.next_cursor}")


async def show_usage(place: Place, request: UsageRequest, screen: Screen) -> None:
    """Show one page of what jobs have cost.

    Raises:
        InvalidRequest: the period or the grouping is none.
    """
    async with open_place(place) as client:
        report = await client.usage(
            request.since, request.until, request.group_by, request.limit, request.cursor
        )
    if request.as_json:
        screen.write(json.dumps(report.model_dump(mode="json")))
        return
    screen.usage(report)
    if report.next_cursor is not None:
        screen.say(f"There are more: --cursor {report.next_cursor}")


async def cancel_job(place: Place, job_id: str, screen: Screen) -> None:
    """Cancel a job.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended otherwise.
    """
    async with open_place(place) as client:
        job = await client.cancel(job_id)
    state = "is cancelled" if job.status is JobStatus.CANCELLED else "will stop in a moment"
    screen.say(f"{job.id} {state}; what was measured is kept.")


async def export_job(
    place: Place,
    job_id: str,
    format: Literal["jsonl", "csv"],
    output: Path | None,
    screen: Screen,
) -> None:
    """Write every evaluation of a job.

    Raises:
        NotFound: there is no such job.
        InvalidRequest: the file cannot be written.
    """
    async with open_place(place) as client:
        text = await client.export(job_id, format)
    if output is None:
        if text:
            screen.write(text)
        return
    _write(output, text)
    screen.say(f"Written to {output}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written ({error.strerror})") from error


async def make_report(place: Place, job_id: str, output: Path | None, screen: Screen) -> None:
    """Write a job's report.

    Raises:
        NotFound: there is no such job.
        InvalidRequest: the file cannot be written.
    """
    async with open_place(place) as client:
        record = await read_record(client, job_id)
    where = await write_report(record, output)
    screen.say(f"Report: {where}")
