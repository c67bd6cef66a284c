"""Examples from files: JSONL, CSV and the instruction-induction layout.

Every refusal names the field of `task.dataset`, the file, the line, and what to do about it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from instructzero.contracts import DatasetSpec, Example, TaskSpec
from instructzero.errors import FieldProblem, InvalidSpec
from instructzero.induction import read_induction
from instructzero.splits import Read, Source, TooFewExamples, split, unique

POINTER = "/task/dataset"


def load_task(
    dataset: DatasetSpec,
    *,
    baseline: str | None = None,
    instructions: Sequence[str] = (),
    relative_to: Path | None = None,
) -> TaskSpec:
    """Read the examples that a dataset names and split them.

    Args:
        dataset: where they are and how many go where.
        baseline: the instruction in use today.
        instructions: instructions to try besides those the search writes.
        relative_to: folder that a relative path is looked up in, before the working directory.

    Raises:
        InvalidSpec: a file or column that is missing, a broken record, or too few examples.
    """
    path = _find(Path(dataset.path).expanduser(), relative_to)
    test = None
    if dataset.format == "instruction_induction":
        pool, test = _from_induction(path, dataset)
    else:
        records = _jsonl(path, dataset) if dataset.format == "jsonl" else _csv(path, dataset)
        pool = Source(path.name, unique(records))
    try:
        parts = split(pool, test, dataset)
    except TooFewExamples as error:
        raise _refuse(error.field, str(error)) from error
    return TaskSpec(
        exemplars=parts.exemplars,
        validation=parts.validation,
        test=parts.test,
        baseline=baseline,
        instructions=tuple(instructions),
    )


def _refuse(field: str, detail: str) -> InvalidSpec:
    pointer = f"{POINTER}/{field}"
    return InvalidSpec(f"{pointer}: {detail}", errors=[FieldProblem(pointer, detail)])


def _find(path: Path, relative_to: Path | None) -> Path:
    candidates = [path] if path.is_absolute() else [(relative_to or Path()) / path, path]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = " and ".join(dict.fromkeys(str(candidate) for candidate in candidates))
    raise _refuse("path", f"there is no such file or folder: {looked}")


def _text_of(path: Path, field: str = "path") -> str:
    if path.is_dir():
        raise _refuse(field, f"{path} is a folder; this format reads one file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refuse(
            field, f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv"
        ) from error
    except OSError as error:
        raise _refuse(field, f"{path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise _refuse(field, f"{path} is empty")
    return text


# --- formats --------------------------------------------------------------------------------------


def _from_induction(folder: Path, dataset: DatasetSpec) -> tuple[Source, Source | None]:
    if not folder.is_dir():
        raise _refuse(
            "path", f"{folder} is a file; name the folder that holds induce/ and execute/"
        )
    names = sorted(file.stem for file in (folder / "induce").glob("*.json"))
    if not names:
        raise _refuse("path", f"{folder} has no induce/*.json")
    if dataset.task is None:
        raise _refuse("task", f"name one of the tasks there: {', '.join(names)}")
    if dataset.task not in names:
        raise _refuse("task", f"there is no {dataset.task!r}; there are {', '.join(names)}")
    induce, execute = (folder / part / f"{dataset.task}.json" for part in ("induce", "execute"))
    pool = Source(f"induce/{induce.name}", unique(_induction(induce, dataset)))
    if not execute.exists():
        return pool, None
    return pool, Source(f"execute/{execute.name}", unique(_induction(execute, dataset)))


def _induction(path: Path, dataset: DatasetSpec) -> Iterator[Read]:
    try:
        document = json.loads(_text_of(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise _refuse("task", f"{path} is not JSON: {_where(error)}") from error
    try:
        for number, example in enumerate(read_induction(document, dataset.seed)):
            yield Read(
                _example(example.text, example.outputs, f"{path}, example {number + 1}"),
                example.identity,
            )
    except ValueError as error:
        raise _refuse("task", f"{path}: {error}") from error


def _jsonl(path: Path, dataset: DatasetSpec) -> Iterator[Read]:
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _refuse("path", f"{where} is not JSON: {_where(error)}") from error
        if not isinstance(record, dict):
            raise _refuse("path", f"{where} is not an object with columns")
        text = _one(record, dataset, "input", where)
        outputs = _one(record, dataset, "output", where)
        yield _read(text, outputs if isinstance(outputs, list) else [outputs], where)


def _csv(path: Path, dataset: DatasetSpec) -> Iterator[Read]:
    rows = csv.DictReader(io.StringIO(_text_of(path), newline=""), restkey="")
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            text, output = (_one(row, dataset, field, where) for field in ("input", "output"))
            yield _read(text, [output], where)
    except csv.Error as error:
        raise _refuse("path", f"{path}, line {rows.line_num} is not CSV: {error}") from error


def _where(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno} column {error.colno}"
    return "nested too deeply"


def _one(record: Mapping[str, Any], dataset: DatasetSpec, field: str, where: str) -> Any:
    column: str = getattr(dataset, field)
    if column not in record:
        found = ", ".join(str(name) for name in record if name) or "none"
        raise _refuse(field, f"{where} has no column {column!r}; it has {found}")
    value = record[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise _refuse(field, f"{where}: the column {column!r} is empty")
    return value


def _read(text: Any, outputs: Sequence[Any], where: str) -> Read:
    example = _example(_plain(text, where), [_plain(output, where) for output in outputs], where)
    return Read(example, example.input)


def _plain(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _refuse("path", f"{where}: expected text or a number, found {type(value).__name__}")
    return str(value)


def _example(text: str, outputs: Sequence[str], where: str) -> Example:
    accepted = tuple(dict.fromkeys(filled for output in outputs if (filled := output.strip())))
    try:
        return Example(input=text.strip(), output=accepted)
    except ValidationError as error:
        first = error.errors()[0]
        field = first["loc"][0]
        raise _refuse("path", f"{where}: {field}: {first['msg']}") from error
