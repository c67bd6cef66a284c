"""What every route works with: its dependencies, sessions, and bodies read strictly as JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

from fastapi import Depends, Request
from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from instructzero.contracts import JobSpec, MetricSpec
from instructzero.errors import (
    FieldProblem,
    InvalidSpec,
    NotFound,
    StoreUnavailable,
    UnsupportedMediaType,
)
from services.optimizer.buyer import Scorer
from services.optimizer.database import Database, SessionMaker
from services.optimizer.settings import Settings
from services.optimizer.watch import Watch

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
MAX_PROBLEMS = 100
MAX_POINTER = 300


@runtime_checkable
class ListsModels(Protocol):
    """A generator that can say which models it serves."""

    async def models(self) -> tuple[str, ...] | None:
        """Return the models it serves, None if it does not say."""
        ...


@dataclass(frozen=True)
class ApiDeps:
    """What the API works with; all of it stays its giver's to close."""

    database: Database
    scorer: Scorer
    generator: object | None
    settings: Settings
    check_metric: Callable[[MetricSpec, Sequence[str]], str | None]
    ready: Callable[[], Awaitable[Mapping[str, str]]]


def deps_of(request: Request) -> ApiDeps:
    """Return the app's dependencies; they are no lifespan state, so no lifespan need run."""
    deps: ApiDeps = request.app.state.deps
    return deps


def watch_of(request: Request) -> Watch:
    """Return what waits for jobs to change."""
    watch: Watch = request.app.state.watch
    return watch


Deps = Annotated[ApiDeps, Depends(deps_of)]
Watching = Annotated[Watch, Depends(watch_of)]


@asynccontextmanager
async def transaction(sessions: SessionMaker) -> AsyncIterator[AsyncSession]:
    """Open one transaction, committed at the end.

    Raises:
        StoreUnavailable: the database does not answer, or all its connections are taken.
    """
    try:
        async with sessions.begin() as session:
            yield session
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise StoreUnavailable(
            f"the database does not answer ({type(error).__name__})", retry_after_seconds=2
        ) from error


async def open_reads(deps: Deps) -> AsyncIterator[AsyncSession]:
    """Give a request a session that only reads."""
    async with transaction(deps.database.reads) as session:
        yield session


async def open_writes(deps: Deps) -> AsyncIterator[AsyncSession]:
    """Give a request one transaction, committed before the response."""
    async with transaction(deps.database.writes) as session:
        yield session


Reading = Annotated[AsyncSession, Depends(open_reads, scope="function")]
Writing = Annotated[AsyncSession, Depends(open_writes, scope="function")]


def checked_id(job_id: str) -> str:
    """Refuse what cannot be a job's id before the database sees it.

    Raises:
        NotFound: it is none.
    """
    if not JOB_ID.fullmatch(job_id):
        raise NotFound("there is no such job")
    return job_id


JobId = Annotated[str, Depends(checked_id)]


class SentSpec(NamedTuple):
    """A job spec as it came: valid by itself, and the SHA-256 of its canonical JSON."""

    spec: JobSpec
    body_hash: str


async def read_spec(request: Request) -> SentSpec:
    """Read a job spec from the body, off the event loop: it may be large.

    Raises:
        UnsupportedMediaType: the body is not declared as JSON.
        InvalidSpec: it is not JSON, or not a job spec; names the fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(
            "send the job spec as JSON (Content-Type: application/json); "
            "`instructzero submit` turns a YAML file into it"
        )
    return await asyncio.to_thread(parse_spec, await request.body())


Sent = Annotated[SentSpec, Depends(read_spec)]


def parse_spec(raw: bytes) -> SentSpec:
    """Read a job spec.

    Raises:
        InvalidSpec: it is not JSON, or not a job spec; names the fields.
    """
    content = parse_json(raw)
    task = content.get("task") if isinstance(content, dict) else None
    if isinstance(task, dict) and "dataset" in task:
        raise refusal(
            "/task/dataset",
            "a server takes inline examples only and reads no files: give exemplars and "
            "validation, or let `instructzero submit` read the files and send the examples",
        )
    try:
        spec = JobSpec.model_validate_json(raw, strict=True)
    except ValidationError as error:
        problems = _problems(error, content)
        first = f"{problems[0].pointer or 'body'}: {problems[0].detail}"
        raise InvalidSpec(first, errors=problems) from None
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return SentSpec(spec, hashlib.sha256(canonical.encode()).hexdigest())


def refusal(pointer: str, detail: str) -> InvalidSpec:
    """Return the error for one field."""
    return InvalidSpec(f"{pointer or 'body'}: {detail}", errors=[FieldProblem(pointer, detail)])


class _Repeats(dict[str, Any]):
    """A JSON object that names a field twice."""

    name: str = ""


def parse_json(raw: bytes) -> Any:
    """Parse JSON that is UTF-8, names no field twice, and holds only whole characters.

    Raises:
        InvalidSpec: it is something else; says where.
    """
    repeated = False

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        repeated = True
        names = [name for name, _ in pairs]
        marked = _Repeats(found)
        marked.name = next(name for name in names if names.count(name) > 1)
        return marked

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=build)
    except UnicodeDecodeError as error:
        raise refusal("", f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise refusal("", f"not valid JSON at {where}") from None
    except RecursionError:
        raise refusal("", "nested too deeply") from None
    except ValueError:  # an integer with more digits than Python reads
        raise refusal("", "holds a number with too many digits") from None
    if repeated or b"\\ud" in raw.lower():
        _refuse_odd_parts(content)
    return content


def _refuse_odd_parts(content: Any) -> None:
    """Find the field that is named twice, or the half of a character pair.

    Raises:
        InvalidSpec: there is one.
    """
    left: list[tuple[tuple[str | int, ...], Any]] = [((), content)]
    while left:
        path, value = left.pop()
        if isinstance(value, _Repeats):
            raise refusal(pointer_of((*path, value.name)), "is given twice; give it once")
        if isinstance(value, str) and not _is_whole(value):
            raise refusal(pointer_of(path), "holds half of a surrogate pair, which is no character")
        if isinstance(value, dict):
            if any(not _is_whole(name) for name in value):
                raise refusal(pointer_of(path), "has a field whose name holds half a character")
            left += [((*path, name), item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [((*path, index), item) for index, item in enumerate(value)]


def _is_whole(text: str) -> bool:
    return re.search(r"[\ud800-\udfff]", text) is None


def pointer_of(path: Sequence[str | int]) -> str:
    """Return an RFC 6901 pointer, cut where a name in it is absurdly long."""
    parts = [
        re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", str(part))
        .replace("~", "~0")
        .replace("/", "~1")
        for part in path
    ]
    pointer = "".join(f"/{part}" for part in parts)
    return pointer if len(pointer) <= MAX_POINTER else pointer[:MAX_POINTER] + "..."


def _problems(error: ValidationError, content: Any) -> tuple[FieldProblem, ...]:
    """Return one problem per field; several reasons for one field are joined."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        pointer = pointer_of(_path_in(content, item["loc"], is_missing=item["type"] == "missing"))
        detail = item["msg"].removeprefix("Value error, ")[:500]
        reasons = found.setdefault(pointer, [])
        if detail not in reasons:
            reasons.append(detail)
    listed = list(found.items())[:MAX_PROBLEMS]
    return tuple(FieldProblem(pointer, "; or ".join(reasons)) for pointer, reasons in listed)


def _path_in(
    content: Any, location: tuple[str | int, ...], *, is_missing: bool
) -> tuple[str | int, ...]:
    """Return the part of a location that the body has (the validator also names its branches)."""
    path: list[str | int] = []
    value = content
    for place, part in enumerate(location):
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            if is_missing and place == len(location) - 1:
                path.append(part)
            break
        path.append(part)
    return tuple(path)
