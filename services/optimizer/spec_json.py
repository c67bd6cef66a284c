"""Job specs read strictly from bytes: every refusal names the field, and none costs much. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from instructzero.contracts import MAX_TEST, Example, JobSpec
from instructzero.errors import FieldProblem, InvalidSpec

MOST_PROBLEMS = 100
MOST_FIELDS = 100
MOST_ENTRIES = MAX_TEST
LONGEST_POINTER = 300
Path = tuple[str | int, ...]
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class SentSpec(NamedTuple):
    """A job spec as it came: valid by itself, and the SHA-256 of its canonical JSON."""

    spec: JobSpec
    body_hash: str


def parse_spec(raw: bytes) -> SentSpec:
    """Read a job spec.

    Raises:
        InvalidSpec: it is not JSON, or not a job spec; names the fields.
    """
    content = parse_json(raw)
    task = content.get("task") if isinstance(content, dict) else None
    if isinstance(task, dict):
        _check_task(task)
    try:
        spec = JobSpec.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise _refuse_all(_problems(error, content, ())) from None
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return SentSpec(spec, hashlib.sha256(canonical.encode()).hexdigest())


def _check_task(task: dict[str, Any]) -> None:
    """Refuse a task that names files, and wrong examples before there can be millions of them.

    Raises:
        InvalidSpec: says which.
    """
    if "dataset" in task:
        raise refusal(
            "/task/dataset",
            "a server takes inline examples only and reads no files: give exemplars and "
            "validation, or let `instructzero submit` read the files and send the examples",
        )
    problems: list[FieldProblem] = []
    for split in ("exemplars", "validation", "test"):
        examples = task.get(split)
        for index, example in enumerate(examples if isinstance(examples, list) else ()):
            try:
                Example.model_validate(example, strict=True)
            except ValidationError as error:
                problems += _problems(error, example, ("task", split, index))
            if len(problems) >= MOST_PROBLEMS:
                raise _refuse_all(problems)
    if problems:
        raise _refuse_all(problems)


def refusal(pointer: str, detail: str) -> InvalidSpec:
    """Return the error for one field."""
    return _refuse_all([FieldProblem(pointer, detail)])


def _refuse_all(problems: Sequence[FieldProblem]) -> InvalidSpec:
    first = f"{problems[0].pointer or 'body'}: {problems[0].detail}"
    return InvalidSpec(first, errors=problems[:MOST_PROBLEMS])


class _Repeats(dict[str, Any]):
    """A JSON object that names a field twice."""

    name: str = ""


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    marked = _Repeats(found)
    marked.name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    return marked


def parse_json(raw: bytes) -> Any:
    """Parse JSON that is UTF-8, names no field twice, and has no part larger than any spec's.

    Raises:
        InvalidSpec: it is something else; says where.
    """
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_build_object)
    except UnicodeDecodeError as error:
        raise refusal("", f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise refusal("", f"not valid JSON at {where}") from None
    except RecursionError:
        raise refusal("", "nested too deeply") from None
    except ValueError:  # an integer with more digits than Python reads
        raise refusal("", "holds a number with too many digits") from None
    has_escapes = b"\\u" in raw
    for path, value in _parts(content):
        if (problem := _oddity(value, has_escapes=has_escapes)) is not None:
            raise refusal(pointer_of(path), problem)
    return content


def _parts(content: Any) -> Iterator[tuple[Path, Any]]:
    """Yield every object, array and text with its path; the children of a refused one never."""
    left: list[tuple[Path, Any]] = [((), content)]
    while left:
        path, value = left.pop()
        yield path, value
        if isinstance(value, dict):
            left += [((*path, name), item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [((*path, index), item) for index, item in enumerate(value)]


def _oddity(value: Any, *, has_escapes: bool) -> str | None:
    if isinstance(value, _Repeats):
        shown = pointer_of((value.name,)).removeprefix("/")
        return f"names the field {shown} twice; give it once"
    if isinstance(value, dict):
        if len(value) > MOST_FIELDS:
            return "has more fields than any part of a job spec"
        if has_escapes and any(_HALF_CHARACTER.search(name) for name in value):
            return "has a field whose name holds half a character"
    if isinstance(value, list) and len(value) > MOST_ENTRIES:
        return f"has {len(value)} entries, more than any part of a job spec may have"
    if has_escapes and isinstance(value, str) and _HALF_CHARACTER.search(value):
        return "holds half of a surrogate pair, which is no character"
    return None


def pointer_of(path: Sequence[str | int]) -> str:
    """Return an RFC 6901 pointer, cut where a name in it is absurdly long."""
    parts = [
        _UNPRINTABLE.sub("?", str(part)).replace("~", "~0").replace("/", "~1") for part in path
    ]
    pointer = "".join(f"/{part}" for part in parts)
    return pointer if len(pointer) <= LONGEST_POINTER else pointer[:LONGEST_POINTER] + "..."


def _problems(error: ValidationError, content: Any, root: Path) -> list[FieldProblem]:
    """Return one problem per field; several reasons for one field are joined."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        path = _path_in(content, item["loc"], is_missing=item["type"] == "missing")
        detail = item["msg"].removeprefix("Value error, ")[:500]
        reasons = found.setdefault(pointer_of((*root, *path)), [])
        if detail not in reasons:
            reasons.append(detail)
    return [FieldProblem(pointer, "; or ".join(reasons)) for pointer, reasons in found.items()]


def _path_in(content: Any, location: Path, *, is_missing: bool) -> Path:
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
