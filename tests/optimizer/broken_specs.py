"""Job specs that must be refused, each with the pointer of the field that is wrong."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.optimizer.apis import body

REMOVED = object()


class Broken(NamedTuple):
    """A body and where its problem is."""

    name: str
    raw: bytes
    pointer: str


def _with(path: str, value: Any) -> bytes:
    """Return a valid spec with one field changed (or removed)."""
    spec = body()
    spec.setdefault("labels", {})
    spec.setdefault("generator", {})
    *parents, last = path.removeprefix("/").split("/")
    part: Any = spec
    for name in parents:
        part = part[int(name)] if isinstance(part, list) else part[name]
    if value is REMOVED:
        del part[last]
    else:
        part[int(last) if isinstance(part, list) else last] = value
    return json.dumps(spec).encode()


def _example(text: str, output: Any = "b") -> dict[str, Any]:
    return {"input": text, "output": output}


def _examples(count: int, prefix: str = "n") -> list[dict[str, Any]]:
    return [_example(f"{prefix}{number}") for number in range(count)]


FIELDS: list[tuple[str, Any, str]] = [
    ("/task", REMOVED, "/task"),
    ("/target", REMOVED, "/target"),
    ("/budget", REMOVED, "/budget"),
    ("/task/exemplars", REMOVED, "/task/exemplars"),
    ("/task/validation", REMOVED, "/task/validation"),
    ("/task/validation/3/output", REMOVED, "/task/validation/3/output"),
    ("/colour", "red", "/colour"),
    ("/task/train", [], "/task/train"),
    ("/budget/dollars", 3, "/budget/dollars"),
    ("/task/validation/0/hint", "x", "/task/validation/0/hint"),
    ("/name", 5, "/name"),
    ("/name", "", "/name"),
    ("/name", "x" * 201, "/name"),
    ("/name", "a\x00b", "/name"),
    ("/name", "a\x1bb", "/name"),
    ("/task", [], "/task"),
    ("/task", "antonyms", "/task"),
    ("/task/exemplars", [], "/task/exemplars"),
    ("/task/exemplars", _examples(51), "/task/exemplars"),
    ("/task/validation", [], "/task/validation"),
    ("/task/validation", _examples(4), "/task/validation"),
    ("/task/validation", _examples(2001), "/task/validation"),
    ("/task/validation", _examples(6000), "/task/validation"),
    ("/task/test", _examples(5001), "/task/test"),
    ("/task/validation", {"0": _example("a")}, "/task/validation"),
    ("/task/validation/0", "direct", "/task/validation/0"),
    ("/task/validation/2/input", "", "/task/validation/2/input"),
    ("/task/validation/2/input", None, "/task/validation/2/input"),
    ("/task/validation/2/input", "a\x07b", "/task/validation/2/input"),
    ("/task/validation/2/input", "x" * 20_001, "/task/validation/2/input"),
    ("/task/validation/2/output", [], "/task/validation/2/output"),
    ("/task/validation/2/output", [1], "/task/validation/2/output/0"),
    ("/task/validation/2/output", [""], "/task/validation/2/output/0"),
    ("/task/validation/2/output", ["x"] * 201, "/task/validation/2/output"),
    ("/task/test/0/input", "v0", "/task"),
    ("/task/baseline", "", "/task/baseline"),
    ("/task/dataset", {"format": "csv", "path": "/etc/passwd"}, "/task/dataset"),
    ("/metric", "vibes", "/metric"),
    ("/metric", {"name": "numeric", "tolerance": -1}, "/metric/tolerance"),
    ("/metric", "judge", "/metric"),
    ("/metric", {"name": "judge", "target": "nobody", "rubric": "Is it right?"}, "/metric/target"),
    ("/metric", "webhook", "/metric"),
    ("/metric", "numeric", "/task/validation/0/output"),
    ("/target", "nowhere", "/target"),
    ("/target", "../etc/passwd", "/target"),
    ("/target", "http://169.254.169.254/", "/target"),
    ("/template", "no placeholders", "/template"),
    ("/template", "{instruction} {input} {input}", "/template"),
    ("/generator/name", "unknown", "/generator/name"),
    ("/generator/intrinsic_dim", 0, "/generator/intrinsic_dim"),
    ("/generator/n_tokens", 65, "/generator/n_tokens"),
    ("/generator/projection", "magic", "/generator/projection"),
    ("/strategy", "annealing", "/strategy"),
    ("/strategy", {"name": "random", "options": {"speed": 9}}, "/strategy/options/speed"),
    ("/strategy", {"name": "random", "options": {"batch": "x"}}, "/strategy/options/batch"),
    ("/strategy", {"name": "random", "options": {"batch": [1]}}, "/strategy/options/batch"),
    ("/strategy", {"name": "random", "options": {"batch": 0}}, "/strategy/options/batch"),
    ("/budget", {}, "/budget"),
    ("/budget", {"calls": 0}, "/budget/calls"),
    ("/budget", {"calls": -5}, "/budget/calls"),
    ("/budget", {"calls": 1.5}, "/budget/calls"),
    ("/budget", {"calls": "100"}, "/budget/calls"),
    ("/budget", {"calls": True}, "/budget/calls"),
    ("/budget", {"calls": 10**30}, "/budget/calls"),
    ("/budget", {"usd": -1}, "/budget/usd"),
    ("/budget", {"usd": float("nan")}, "/budget/usd"),
    ("/budget", {"usd": float("inf")}, "/budget/usd"),
    ("/budget", {"usd": 1}, "/budget/usd"),
    ("/budget", {"tokens": 3}, "/budget/tokens"),
    ("/stop", {"score": 1.5}, "/stop/score"),
    ("/seed", -1, "/seed"),
    ("/seed", 2**63, "/seed"),
    ("/seed", None, "/seed"),
    ("/repeats", 21, "/repeats"),
    ("/labels", {"Team": "x"}, "/labels/Team"),
    ("/labels", {"team": 5}, "/labels/team"),
    ("/labels", {"team": "x" * 201}, "/labels/team"),
    ("/labels", {f"k{n}": "v" for n in range(21)}, "/labels"),
    ("/labels", {f"k{n}": "v" for n in range(200)}, "/labels"),
]


def _whole() -> str:
    return json.dumps(body())


BODIES: list[tuple[str, bytes, str]] = [
    ("empty", b"", ""),
    ("cut off", _whole().encode()[:-10], ""),
    ("no object", b"[1, 2]", ""),
    ("a text", b'"job"', ""),
    ("null", b"null", ""),
    ("yaml", b"name: antonyms\ntarget: demo\n", ""),
    ("deep", b"[" * 10_000 + b"]" * 10_000, ""),
    ("deep field", (_whole()[:-1] + ', "x": ' + "[" * 10_000 + "]" * 10_000 + "}").encode(), ""),
    ("latin 1", _whole().replace("world", "wörld").encode("latin-1"), ""),
    ("utf 16", _whole().encode("utf-16"), ""),
    ("byte order mark", b"\xef\xbb\xbf" + _whole().encode(), ""),
    ("digits", (_whole()[:-1] + ', "seed": ' + "9" * 5000 + "}").encode(), ""),
    ("twice", (_whole()[:-1] + ', "seed": 1, "seed": 2}').encode(), ""),
    (
        "twice inside",
        _whole().replace('"calls": 200', '"calls": 2, "calls": 200').encode(),
        "/budget",
    ),
    ("half a character", (_whole()[:-1] + ', "labels": {"a": "\\ud800"}}').encode(), "/labels/a"),
    ("half a name", (_whole()[:-1] + ', "\\ud800": 1}').encode(), ""),
    ("nul name", (_whole()[:-1] + ', "\\u0000": 1}').encode(), "/?"),
    ("long name", (_whole()[:-1] + ', "' + "k" * 5000 + '": 1}').encode(), "/" + "k" * 299 + "..."),
]

BROKEN = [
    *(Broken(f"{path} {str(value)[:40]}", _with(path, value), at) for path, value, at in FIELDS),
    *(Broken(*case) for case in BODIES),
]
