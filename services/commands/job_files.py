"""A job's YAML file, with the examples it names, becomes a job spec.

Every refusal names the place in the file the way it is written there: `task.validation[3].input`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from instructzero.contracts import (
    Budget,
    DatasetSpec,
    Example,
    GeneratorSpec,
    JobSpec,
    MetricSpec,
    Stop,
    StrategySpec,
    TaskSpec,
)
from instructzero.datasets import load_task
from instructzero.errors import FieldProblem, InvalidSpec

MAX_FILE_BYTES = 32 * 1024 * 1024
MOST_PROBLEMS = 30
MODELS: Mapping[str, type[BaseModel]] = {
    "": JobSpec,
    "task": TaskSpec,
    "task.dataset": DatasetSpec,
    "task.exemplars": Example,
    "task.validation": Example,
    "task.test": Example,
    "metric": MetricSpec,
    "generator": GeneratorSpec,
    "strategy": StrategySpec,
    "budget": Budget,
    "stop": Stop,
}
"""What may stand where, to name the field that was probably meant."""
INLINE = ("exemplars", "validation", "test")
STAND_IN = {
    "exemplars": [{"input": "a", "output": "b"}],
    "validation": [{"input": str(n), "output": "b"} for n in range(20)],
}
"""Takes the place of examples that could not be read, so that the rest is checked all the same."""

Place = Sequence[int | str]


def load_job(path: Path) -> JobSpec:
    """Read a job file and the data it names; a relative path starts at the job file's folder.

    Raises:
        InvalidSpec: one problem per field that is wrong.
    """
    content = _read(path)
    content, problems = _with_examples(content, path.parent)
    try:
        spec = JobSpec.model_validate(content)
    except ValidationError as error:
        problems += [_problem(item) for item in error.errors(include_url=False)]
        spec = None
    if problems or spec is None:
        unique = tuple(dict.fromkeys(problems))
        raise InvalidSpec(f"{path} is not a valid job: {describe(unique)}", errors=unique)
    return spec


def describe(problems: Sequence[FieldProblem]) -> str:
    """Return one line per problem, with the place as it is written in YAML."""
    lines = [
        f"{as_written(problem.pointer) or 'the file'}: {problem.detail}"
        for problem in problems[:MOST_PROBLEMS]
    ]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"… and {len(problems) - MOST_PROBLEMS} more")
    return lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)


def as_written(pointer: str) -> str:
    """Return a JSON pointer as a path in YAML: /task/test/3/input is task.test[3].input."""
    path = ""
    for raw in pointer.split("/")[1:]:
        part = raw.replace("~1", "/").replace("~0", "~")
        path += f"[{part}]" if part.isdigit() else f"{'.' if path else ''}{part}"
    return path


# --- YAML -----------------------------------------------------------------------------------------


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping, if every key is there once."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is given twice", key.start_mark
                )
            if name is not None:
                seen.add(name)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refuse(path, f"is larger than {MAX_FILE_BYTES // 2**20} MB; use task.dataset")
        loader = _UniqueKeys(path.read_text(encoding="utf-8-sig"))
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except OSError as error:
        raise _refuse(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _refuse(path, f"is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise _refuse(path, "is nested too deeply") from error
    except yaml.YAMLError as error:
        raise _refuse(path, f"is not valid YAML: {_yaml_problem(error)}") from error
    except ValueError as error:  # a date or number that YAML recognises and cannot build
        raise _refuse(path, f"holds a value that cannot be read ({error}); quote it") from error
    if content is None:
        raise _refuse(path, "is empty; examples/own_job.yaml shows a job")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise _refuse(path, "must hold `name: value` pairs; examples/own_job.yaml shows a job")
    return content


def _refuse(path: Path, detail: str) -> InvalidSpec:
    return InvalidSpec(f"{path} {detail}")


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + str(getattr(error, "problem", None) or "it cannot be read")


# --- examples -------------------------------------------------------------------------------------


def _with_examples(
    content: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], list[FieldProblem]]:
    """Return the content with `task.dataset` replaced by its examples, and what is wrong there."""
    task = content.get("task")
    if not isinstance(task, dict) or "dataset" not in task:
        return content, []
    rest = {name: value for name, value in task.items() if name != "dataset"}
    problems = [
        FieldProblem(f"/task/{name}", "comes from task.dataset already; leave one of them out")
        for name in INLINE
        if rest.pop(name, None) is not None
    ]
    read: dict[str, Any] = STAND_IN
    try:
        dataset = DatasetSpec.model_validate(task["dataset"])
        loaded = load_task(dataset, relative_to=folder)
        read = loaded.model_dump(mode="json", include=set(INLINE))
    except ValidationError as error:
        problems += [
            _problem(item, before=("task", "dataset")) for item in error.errors(include_url=False)
        ]
    except InvalidSpec as error:
        problems += error.errors
    return content | {"task": rest | read}, problems


# --- what is wrong --------------------------------------------------------------------------------


def _problem(item: Mapping[str, Any], before: Place = ()) -> FieldProblem:
    """Turn one of Pydantic's errors into a place and what to do there."""
    place = [*before, *item["loc"]]
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in place]
    pointer = "/" + "/".join(parts) if parts else ""
    return FieldProblem(pointer, _advice(item, place))


def _advice(item: Mapping[str, Any], place: Place) -> str:
    kind, message = item["type"], str(item["msg"]).removeprefix("Value error, ")
    if kind == "missing":
        is_inline = len(place) == 2 and place[0] == "task" and place[1] in INLINE
        return "is missing; give it, or task.dataset" if is_inline else "is missing"
    if kind == "extra_forbidden":
        return _unknown(place)
    if kind == "string_type" and isinstance(item["input"], bool | int | float):
        return "must be text; put it in quotes"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return "must hold `name: value` pairs"
    if kind == "tuple_type":
        return "must be a list"
    return message[:1].lower() + message[1:]


def _unknown(place: Place) -> str:
    around = ".".join(str(part) for part in place[:-1] if not isinstance(part, int))
    model = MODELS.get(around)
    if model is None:
        return "there is no such field here"
    known = [*model.model_fields, *(["dataset"] if model is TaskSpec else [])]
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no such field; {hint}"
