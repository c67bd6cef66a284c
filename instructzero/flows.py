"""The client without its sockets: each operation is a generator of requests and pauses.

A driver sends what a flow yields and sends the response back in, so that the synchronous and the
asynchronous client share everything but the waiting. Retries, pages and long polls live here.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from instructzero.contracts import (
    DatasetSpec,
    DryRun,
    Event,
    EventPage,
    Job,
    JobPage,
    JobSpec,
    JobStatus,
    Listing,
    TrialPage,
    TrialView,
    UsageReport,
)
from instructzero.datasets import load_task
from instructzero.errors import FieldProblem, InvalidSpec, Unavailable
from instructzero.problems import error_of, unreachable

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 10.0
POLL_SECONDS = 30.0
LEAST_SECONDS_BETWEEN_POLLS = 0.25
OUTAGE_SECONDS = 300.0
"""How long `wait` goes on while the server does not answer."""


@dataclass(frozen=True)
class Call:
    """One request. `is_repeatable`: sending it twice does no more than sending it once."""

    method: str
    path: str
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    is_repeatable: bool = True
    extra_seconds: float = 0.0


@dataclass(frozen=True)
class Pause:
    """Wait this long."""

    seconds: float


@dataclass(frozen=True)
class Done(Generic[T]):
    """The flow has ended with this."""

    value: T


Flow = Generator[Call | Pause, httpx.Response, T]
"""Is sent each Call's response, or thrown the error that befell it."""
Outcome = httpx.Response | httpx.TransportError | None
"""What came of a step; None before the first one and after a pause."""


def advance(flow: Flow[T], outcome: Outcome) -> Call | Pause | Done[T]:
    """Return what a driver is to do next."""
    try:
        if isinstance(outcome, httpx.TransportError):
            return flow.throw(outcome)
        return next(flow) if outcome is None else flow.send(outcome)
    except StopIteration as end:
        return Done(end.value)


def exchange(call: Call, *, attempts: int = ATTEMPTS) -> Flow[httpx.Response]:
    """Send a request, again where that is safe and can help; return a response below 400.

    Raises:
        InstructZeroError: of the class that the server's problem document names.
        Unavailable: the server could not be reached.
    """
    for attempt in range(1, attempts + 1):
        is_last = attempt == attempts
        try:
            response = yield call
        except httpx.TransportError as error:
            was_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            if is_last or (was_sent and not call.is_repeatable):
                raise unreachable(error) from error
            yield Pause(_backoff(attempt))
            continue
        if response.status_code < 400:
            return response
        refusal = error_of(response)
        if is_last or response.status_code not in {429, 503}:
            raise refusal
        wanted = refusal.retry_after_seconds or 0.0
        yield Pause(min(max(wanted, _backoff(attempt)), LONGEST_PAUSE_SECONDS))
    raise AssertionError("unreachable")


def _backoff(attempt: int) -> float:
    spread = random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, decides nothing
    return float(min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS) * spread)


def fetch(kind: type[Model], call: Call) -> Flow[Model]:
    """Send a request and read its answer."""
    response = yield from exchange(call)
    return parse(kind, response)


def parse(kind: type[T], response: httpx.Response) -> T:
    """Read an answer.

    Raises:
        Unavailable: it is not what this API answers; something else listens there.
    """
    try:
        return TypeAdapter(kind).validate_json(response.content)
    except ValidationError as error:
        raise Unavailable(
            f"the answer has not the form of this API ({error.error_count()} differences): check "
            "that the address is an InstructZero server of the same version as this client",
            reason="unexpected_answer",
        ) from error


def create(spec: JobSpec | Mapping[str, Any], idempotency_key: str | None) -> Flow[Job]:
    """Create a job; the key makes sending it again safe."""
    headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
    call = replace(_post_spec(spec), headers=headers)
    return (yield from fetch(Job, call))


def estimate(spec: JobSpec | Mapping[str, Any]) -> Flow[DryRun]:
    """Check a spec and say what it would cost."""
    return (yield from fetch(DryRun, replace(_post_spec(spec), params={"dry_run": "true"})))


def _post_spec(spec: JobSpec | Mapping[str, Any]) -> Call:
    complete = spec if isinstance(spec, JobSpec) else complete_spec(spec)
    return Call("POST", "/jobs", content=complete.model_dump_json().encode())


def complete_spec(content: Mapping[str, Any]) -> JobSpec:
    """Return a spec from plain data; a `dataset` is read here, since servers read no files.

    Raises:
        InvalidSpec: a field is wrong; names it.
    """
    task = content.get("task")
    try:
        if isinstance(task, Mapping) and "dataset" in task:
            rest = {name: value for name, value in task.items() if name != "dataset"}
            read = load_task(DatasetSpec.model_validate(task["dataset"]), **rest)
            content = {**content, "task": read}
        return JobSpec.model_validate(content)
    except ValidationError as error:
        problems = [
            FieldProblem("".join(f"/{part}" for part in item["loc"]), item["msg"])
            for item in error.errors(include_url=False, include_input=False)
        ]
        first = f"{problems[0].pointer or 'spec'}: {problems[0].detail}"
        raise InvalidSpec(first, errors=problems) from error
    except TypeError as error:
        detail = "a dataset takes only `baseline` and `instructions` beside it"
        raise InvalidSpec(detail, errors=[FieldProblem("/task", detail)]) from error


def job_path(job_id: str, *parts: str) -> str:
    """Return the path of a job or of something it has."""
    return "/".join(("/jobs", quote(job_id, safe=""), *parts))


def get(job_id: str, wait_seconds: float | None, newer_than: int | None) -> Flow[Job]:
    """Return a job, once it is newer than a version or the wait is over."""
    newer = yield from poll(job_id, wait_seconds, newer_than)
    if newer is not None:
        return newer
    return (yield from fetch(Job, Call("GET", job_path(job_id))))


def poll(
    job_id: str, wait_seconds: float | None, newer_than: int | None, *, attempts: int = ATTEMPTS
) -> Flow[Job | None]:
    """Return a job, None if it still is the version named."""
    call = Call(
        "GET",
        job_path(job_id),
        params={} if wait_seconds is None else {"wait": wait_seconds},
        headers={} if newer_than is None else {"if-none-match": f'W/"{newer_than}"'},
        extra_seconds=wait_seconds or 0.0,
    )
    response = yield from exchange(call, attempts=attempts)
    return None if response.status_code == 304 else parse(Job, response)


def wait(
    job_id: str, timeout_seconds: float | None, on_update: Callable[[Job], None] | None
) -> Flow[Job]:
    """Return a job when it has ended; an outage of the server is waited out.

    Raises:
        TimeoutError: it had not ended in time.
        Unavailable: the server did not answer for `OUTAGE_SECONDS`.
    """
    end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    job: Job | None = None
    answered = time.monotonic()
    while True:
        begun = time.monotonic()
        left = POLL_SECONDS if end is None else min(POLL_SECONDS, max(end - begun, 0.0))
        wanted = None if job is None else round(left, 3)
        try:
            version = None if job is None else job.version
            newer = yield from poll(job_id, wanted, version, attempts=1)
        except Unavailable:
            if time.monotonic() - answered > OUTAGE_SECONDS:
                raise
            newer = None
            yield Pause(1.0)
        else:
            answered = time.monotonic()
        if newer is not None:
            job = newer
            if on_update is not None:
                on_update(job)
            if job.status.is_finished:
                return job
        if end is not None and time.monotonic() >= end:
            raise TimeoutError(f"the job had not ended after {timeout_seconds:g} seconds")
        yield Pause(max(LEAST_SECONDS_BETWEEN_POLLS - (time.monotonic() - begun), 0.0))


def list_jobs(
    status: JobStatus | str | None,
    labels: Mapping[str, str] | None,
    limit: int,
    cursor: str | None,
) -> Flow[JobPage]:
    """Return one page of jobs, newest first."""
    params: dict[str, str | int | float] = {"limit": limit}
    if status is not None:
        params["status"] = str(status)
    if cursor is not None:
        params["cursor"] = cursor
    params |= {f"label.{key}": value for key, value in (labels or {}).items()}
    return (yield from fetch(JobPage, Call("GET", "/jobs", params)))


def usage(
    since: datetime | str | None,
    until: datetime | str | None,
    group_by: str,
    limit: int,
    cursor: str | None,
) -> Flow[UsageReport]:
    """Return one page of what jobs have cost."""
    params: dict[str, str | int | float] = {"group_by": group_by, "limit": limit}
    for name, moment in (("since", since), ("until", until)):
        if moment is not None:
            params[name] = moment if isinstance(moment, str) else moment.isoformat()
    if cursor is not None:
        params["cursor"] = cursor
    return (yield from fetch(UsageReport, Call("GET", "/usage", params)))


def steer(job_id: str, action: str) -> Flow[Job]:
    """Cancel, pause or resume a job."""
    return (yield from fetch(Job, Call("POST", job_path(job_id, action))))


def delete(job_id: str) -> Flow[None]:
    """Delete a finished job."""
    yield from exchange(Call("DELETE", job_path(job_id), is_repeatable=False))


def trials(job_id: str) -> Flow[list[TrialView]]:
    """Return every trial, page by page."""
    found: list[TrialView] = []
    cursor: str | None = None
    while True:
        params: dict[str, str | int | float] = {"limit": 1000}
        if cursor is not None:
            params["cursor"] = cursor
        page = yield from fetch(TrialPage, Call("GET", job_path(job_id, "trials"), params))
        found += page.data
        cursor = page.next_cursor
        if cursor is None:
            return found


def events(job_id: str, after: int) -> Flow[list[Event]]:
    """Return every event after a sequence number."""
    found: list[Event] = []
    while True:
        params = {"after": after, "limit": 1000}
        page = yield from fetch(EventPage, Call("GET", job_path(job_id, "events"), params))
        found += page.data
        if not page.has_more:
            return found
        after = page.data[-1].seq


def export(job_id: str, format: str) -> Flow[str]:
    """Return every evaluation as text."""
    call = Call("GET", job_path(job_id, "export"), {"format": format}, extra_seconds=300.0)
    return (yield from exchange(call)).text


def server_version() -> Flow[str]:
    """Return the server's version."""
    response = yield from exchange(Call("GET", "/version"))
    return str(parse(dict[str, str], response).get("version", ""))


def read(job_id: str, *parts: str) -> Call:
    """Return the request for something a job has."""
    return Call("GET", job_path(job_id, *parts))


def listing(kind: type[Model], path: str) -> Flow[list[Model]]:
    """Return a complete list."""
    response = yield from exchange(Call("GET", path))
    return list(parse(Listing[kind], response).data)  # type: ignore[valid-type]
