"""What a job left, over REST: trials, result, events, and every evaluation as a file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import StreamingResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from instructzero.contracts import (
    EventPage,
    JobSpec,
    JobStatus,
    Result,
    TrialDetail,
    TrialPage,
)
from instructzero.errors import Conflict, StoreUnavailable
from services.optimizer import control, cursors, reads
from services.optimizer.export import csv_lines, export_records, json_lines
from services.optimizer.intake import ApiDeps, Deps, JobId, Looking, Reading, Watching
from services.optimizer.looks import Looks
from services.optimizer.openapi import PROBLEMS, problems
from services.optimizer.reads import Mark
from services.optimizer.sessions import transaction
from services.optimizer.views import event_view, n_validation_of, trial_detail, trial_view
from services.optimizer.watch import Watch

PING_SECONDS = 15
WATCH_SECONDS = 60.0
EVENTS_AT_ONCE = 200
LARGEST = 2**31 - 1
Number = Annotated[int, Path(ge=1, le=LARGEST)]
Sequence = Annotated[int, Query(ge=0, le=LARGEST, description="the last `seq` already seen")]
router = APIRouter(prefix="/jobs/{job_id}", tags=["record"])


@router.get("/trials", responses=PROBLEMS)
async def list_trials(
    job_id: JobId,
    session: Reading,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> TrialPage:
    """List the instructions that were tried, in the order they were first tried."""
    after = 0 if cursor is None else cursors.read_trial_cursor(cursor)
    spec = JobSpec.model_validate((await reads.read_job(session, job_id)).spec)
    found = await reads.list_tried(session, job_id, after=after, limit=limit + 1)
    shown = found[:limit]
    scores = await reads.read_scores(session, job_id, [tried.arm.n for tried in shown])
    n_validation = n_validation_of(spec)
    trials = tuple(trial_view(tried, scores[tried.arm.n], n_validation) for tried in shown)
    if len(found) <= limit:
        return TrialPage(data=trials)
    return TrialPage(data=trials, next_cursor=cursors.after_trial(trials[-1].trial), has_more=True)


@router.get("/trials/{trial}", responses=PROBLEMS)
async def show_trial(job_id: JobId, trial: Number, session: Reading) -> TrialDetail:
    """Return one trial with its answers, cost and timing."""
    spec = JobSpec.model_validate((await reads.read_job(session, job_id)).spec)
    tried = await reads.read_tried(session, job_id, trial)
    evaluations = await reads.read_evaluations(session, job_id, tried.arm.n)
    timing = await reads.read_timing(session, job_id, tried.arm)
    return trial_detail(tried, evaluations, spec, timing)


@router.get("/result", responses={**PROBLEMS, **problems(409)})
async def show_result(job_id: JobId, deps: Deps) -> Result:
    """Return the result document of a finished job."""
    async with transaction(deps.database.reads) as session:
        row = await reads.read_job(session, job_id)
    status = JobStatus(row.status)
    if not status.is_finished:
        raise Conflict(
            f"the job is {status}; its result is there when it has ended "
            "(GET /jobs/{id}?wait=30 tells when)",
            reason="not_finished",
        )
    if row.result is not None:
        return Result.model_validate(row.result)
    connections = await control.find_connections(row.spec, deps.scorer)
    async with transaction(deps.database.reads) as session:
        return await control.result_without_runner(session, row, connections, status)


@router.get("/events", responses=PROBLEMS)
async def list_events(
    job_id: JobId,
    session: Reading,
    looks: Looking,
    after: Sequence = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> EventPage:
    """List what happened to a job after a sequence number, oldest first."""
    await looks.mark(job_id)
    rows = await reads.list_events(session, job_id, after=after, limit=limit + 1)
    return EventPage(data=tuple(map(event_view, rows[:limit])), has_more=len(rows) > limit)


@router.get(
    "/events/stream",
    response_class=EventSourceResponse,
    responses={
        200: {"description": "server-sent events", "content": {"text/event-stream": {}}},
        **PROBLEMS,
    },
)
async def stream_events(
    job_id: JobId,
    deps: Deps,
    looks: Looking,
    watch: Watching,
    after: Sequence = 0,
    last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,9}$")] = None,
) -> EventSourceResponse:
    """Stream a job's events as they happen, until its last one; Last-Event-ID resumes."""
    await looks.mark(job_id)
    first = after if last_event_id is None else int(last_event_id)
    return EventSourceResponse(_events(job_id, first, deps, looks, watch), ping=PING_SECONDS)


async def _events(
    job_id: str, after: int, deps: ApiDeps, looks: Looks, watch: Watch
) -> AsyncIterator[ServerSentEvent]:
    """Yield events until the last one; a caller whose stream ends early resumes where it was."""
    with suppress(StoreUnavailable):
        while True:
            mark = (await looks.marks([job_id])).get(job_id)
            async with transaction(deps.database.reads) as session:
                rows = await reads.list_events(session, job_id, after=after, limit=EVENTS_AT_ONCE)
            for row in rows:
                after = row.seq
                event = event_view(row)
                yield ServerSentEvent(data=event.model_dump_json(), event=event.type, id=str(after))
            has_ended = mark is None or (mark.is_finished and after >= mark.n_events)
            if has_ended or watch.is_closed:
                return
            if not rows:
                await watch.until(job_id, _has_more_than(after), WATCH_SECONDS)


def _has_more_than(seen: int) -> Callable[[Mark], bool]:
    return lambda mark: mark.n_events > seen or mark.is_finished


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "every evaluation, one a line",
            "content": {"application/x-ndjson": {}, "text/csv": {}},
        },
        **PROBLEMS,
    },
)
async def export_evaluations(
    job_id: JobId, deps: Deps, format: Literal["jsonl", "csv"] = "jsonl"
) -> StreamingResponse:
    """Return every evaluation with its instruction, answer, score and cost."""
    async with transaction(deps.database.reads) as session:
        spec = JobSpec.model_validate((await reads.read_job(session, job_id)).spec)
    records = export_records(job_id, spec, deps.database)
    return StreamingResponse(
        json_lines(records) if format == "jsonl" else csv_lines(records),
        media_type="application/x-ndjson" if format == "jsonl" else "text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{job_id}.{format}"'},
    )
