"""The jobs of the REST API: create, read, list, steer, delete."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter, ValidationError

from instructzero.contracts import DryRun, Job, JobPage, JobStatus, LabelKey, LabelValue
from instructzero.errors import FieldProblem, InvalidRequest
from services.optimizer import control, cursors, reads
from services.optimizer.admission import admit
from services.optimizer.estimate import estimate_job, outlook_of
from services.optimizer.intake import Deps, JobId, Looking, Reading, Sent, Watching, Writing
from services.optimizer.openapi import CREATE_BODY, PROBLEMS, problems
from services.optimizer.reads import Mark
from services.optimizer.sessions import transaction
from services.optimizer.tables import JobRow
from services.optimizer.views import job_view

RETRY_AFTER_SECONDS = 2
LABEL_PREFIX = "label."
Wait = Annotated[
    float | None,
    Query(ge=0, le=60, description="seconds to wait for a change before the answer is given"),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="makes a repeated request safe: the same key with the same body is one job",
    ),
]
IfNoneMatch = Annotated[str | None, Header(max_length=1000, description="an ETag seen before")]
_LABEL_KEY: TypeAdapter[str] = TypeAdapter(LabelKey)
_LABEL_VALUE: TypeAdapter[str] = TypeAdapter(LabelValue)

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.post(
    "",
    status_code=202,
    response_model=Job,
    responses={
        200: {"model": DryRun, "description": "the estimate of a dry run"},
        **problems(401, 413, 415, 422, 500, 503),
    },
    openapi_extra=CREATE_BODY,
)
async def create_job(
    sent: Sent,
    deps: Deps,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="check and estimate; store nothing")] = False,
) -> Response:
    """Check a job spec and queue it; a dry run says what it would cost instead."""
    if idempotency_key is not None and not dry_run:
        async with transaction(deps.database.reads) as session:
            known = await reads.find_idempotent(session, idempotency_key, sent.body_hash)
        if known is not None:
            return _as_job(known, status_code=202)
    connections = await admit(sent.spec, deps)
    if dry_run:
        estimate = estimate_job(sent.spec, connections)
        answer = DryRun(spec=sent.spec, spec_hash=sent.spec.spec_hash(), estimate=estimate)
        return JSONResponse(answer.model_dump(mode="json"))
    async with transaction(deps.database.writes) as session:
        row = await reads.insert_job(
            session,
            f"job_{uuid.uuid4().hex}",
            sent.spec,
            outlook=outlook_of(sent.spec, connections).content(),
            key=idempotency_key,
            body_hash=sent.body_hash,
        )
    return _as_job(row, status_code=202)


@router.get("", responses=problems(401, 422, 500, 503))
async def list_jobs(
    request: Request,
    session: Reading,
    status: JobStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> JobPage:
    """List jobs, newest first; `label.KEY=VALUE` (any number of them) keeps those with a label."""
    rows = await reads.list_jobs(
        session,
        status=status,
        labels=_labels(request),
        after=None if cursor is None else cursors.read_job_cursor(cursor),
        limit=limit + 1,
    )
    shown = rows[:limit]
    jobs = await asyncio.to_thread(lambda: tuple(job_view(row) for row in shown))
    if len(rows) <= limit:
        return JobPage(data=jobs)
    last = shown[-1]
    return JobPage(
        data=jobs, next_cursor=cursors.after_job(last.created_at, last.id), has_more=True
    )


@router.get(
    "/{job_id}",
    response_model=Job,
    responses={304: {"description": "the version named by If-None-Match"}, **PROBLEMS},
)
async def show_job(
    job_id: JobId,
    looks: Looking,
    watch: Watching,
    wait: Wait = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a job; `wait` returns as soon as it is not (any more) the version already seen."""
    seen = _tags(if_none_match)
    if not seen and not wait:  # by far the most frequent
        return _as_job(await looks.job(job_id))
    mark = await looks.mark(job_id)
    if wait and not mark.is_finished and (not seen or _is_seen(mark.version, seen)):
        before = mark.version

        def has_changed(mark: Mark) -> bool:
            return mark.version != before or mark.is_finished

        await watch.until(job_id, has_changed, wait)
        mark = await looks.mark(job_id)
    if _is_seen(mark.version, seen):
        return Response(status_code=304, headers=_headers(job_id, mark))
    return _as_job(await looks.job(job_id))


@router.post("/{job_id}/cancel", response_model=Job, responses={**PROBLEMS, **problems(409)})
async def cancel_job(job_id: JobId, deps: Deps) -> Response:
    """End a job with what it knows; calls in flight are still paid for."""
    async with transaction(deps.database.reads) as session:
        spec = (await reads.read_job(session, job_id)).spec
    connections = await control.find_connections(spec, deps.scorer)
    async with transaction(deps.database.writes) as session:
        row = await control.cancel(session, job_id, connections)
    return _as_job(row)


@router.post("/{job_id}/pause", response_model=Job, responses={**PROBLEMS, **problems(409)})
async def pause_job(job_id: JobId, session: Writing) -> Response:
    """Stop a job from spending until it is resumed."""
    return _as_job(await control.pause(session, job_id))


@router.post("/{job_id}/resume", response_model=Job, responses={**PROBLEMS, **problems(409)})
async def resume_job(job_id: JobId, session: Writing) -> Response:
    """Queue a paused job again."""
    return _as_job(await control.resume(session, job_id))


@router.delete("/{job_id}", status_code=204, responses={**PROBLEMS, **problems(409)})
async def delete_job(job_id: JobId, session: Writing) -> None:
    """Delete a finished job and all it left."""
    await control.delete(session, job_id)


def etag(version: int) -> str:
    """Return the tag of a job's version: weak, since the time that is left changes without it."""
    return f'W/"{version}"'


def _headers(job_id: str, mark: Mark) -> dict[str, str]:
    headers = {"etag": etag(mark.version), "location": f"/jobs/{job_id}"}
    if not mark.is_finished:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return headers


def _as_job(row: JobRow, *, status_code: int = 200) -> Response:
    """Return a job with its version as ETag."""
    job = job_view(row)
    mark = Mark(row.version, job.status.is_finished, row.n_events)
    return Response(
        job.model_dump_json(),
        status_code=status_code,
        headers=_headers(row.id, mark),
        media_type="application/json",
    )


def _tags(header: str | None) -> frozenset[str]:
    """Return the tags of an If-None-Match; weak comparison, so their strength does not matter."""
    if header is None:
        return frozenset()
    if header.strip() == "*":
        return frozenset({"*"})
    return frozenset(re.findall(r'(?:W/)?"([^"]*)"', header))


def _is_seen(version: int, tags: frozenset[str]) -> bool:
    return "*" in tags or str(version) in tags


def _labels(request: Request) -> dict[str, str]:
    """Return the labels that the query asks for.

    Raises:
        InvalidRequest: a key or value that no label can have.
    """
    wanted = {}
    for name, value in request.query_params.multi_items():
        if not name.startswith(LABEL_PREFIX):
            continue
        try:
            key = _LABEL_KEY.validate_python(name.removeprefix(LABEL_PREFIX))
            wanted[key] = _LABEL_VALUE.validate_python(value)
        except ValidationError as error:
            detail = "no label can have this key or value"
            problem = FieldProblem("/query/label", detail)
            raise InvalidRequest(f"label: {detail}", errors=[problem]) from error
    return wanted
