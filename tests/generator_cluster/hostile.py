"""Two hundred requests that no engine should ever see."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

DIM = 10


class Hostile(NamedTuple):
    """A kind of mischief and the bytes that carry it."""

    kind: str
    content: bytes
    content_type: str = "application/json"


def request_body(n_points: int = 1, *, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A request for points drawn from the box."""
    draw = random.Random(seed)
    return {
        "request_id": f"r{seed}",
        "exemplars": [{"input": "sane", "output": "insane"}, {"input": "hot", "output": "cold"}],
        "points": [[draw.uniform(-1, 1) for _ in range(DIM)] for _ in range(n_points)],
        "max_tokens": 32,
        **changes,
    }


def _with_point(value: Any) -> Callable[[random.Random], dict[str, Any]]:
    def spoil(draw: random.Random) -> dict[str, Any]:
        point: list[Any] = [draw.uniform(-1, 1) for _ in range(DIM)]
        point[draw.randrange(DIM)] = value
        return request_body(points=[[0.0] * DIM, point])

    return spoil


def _without(field: str) -> Callable[[random.Random], dict[str, Any]]:
    return lambda _: {k: v for k, v in request_body().items() if k != field}


def _long(draw: random.Random) -> dict[str, Any]:
    pairs = [{"input": "word " * draw.randrange(300, 3_000), "output": "x"} for _ in range(20)]
    return request_body(exemplars=pairs)


SPOILED: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "not a number": _with_point(float("nan")),
    "infinite": _with_point(float("inf")),
    "minus infinite": _with_point(float("-inf")),
    "out of the box": _with_point(1.5),
    "a string for a number": _with_point("0.5x"),
    "null for a number": _with_point(None),
    "too few coordinates": lambda d: request_body(points=[[0.1] * d.randrange(1, DIM)]),
    "too many coordinates": lambda d: request_body(points=[[0.1] * d.randrange(DIM + 1, 90)]),
    "no points": lambda _: request_body(points=[]),
    "an empty point": lambda _: request_body(points=[[]]),
    "points of another rank": lambda _: request_body(points=[[[0.1] * DIM]]),
    "one point too many": lambda _: request_body(1_025),
    "too long a prompt": _long,
    "no exemplars": lambda _: request_body(exemplars=[]),
    "no request id": _without("request_id"),
    "no points field": _without("points"),
    "no exemplars field": _without("exemplars"),
    "an unknown model": lambda d: request_body(model=f"other-{d.randrange(9)}"),
    "a penalty": lambda d: request_body(
        **{d.choice(["repetition_penalty", "presence_penalty", "frequency_penalty"]): 1.2}
    ),
    "negative tokens": lambda d: request_body(max_tokens=-d.randrange(100)),
    "too many tokens": lambda d: request_body(max_tokens=d.randrange(1_025, 10**9)),
    "a negative temperature": lambda _: request_body(temperature=-0.1),
    "a seed out of range": lambda _: request_body() | {"seed": 2**63},
    "a soft prompt of no tokens": lambda _: request_body(projection={"n_tokens": 0}),
    "a huge soft prompt": lambda _: request_body(projection={"n_tokens": 10**6}),
    "a dimension of none": lambda _: request_body(projection={"intrinsic_dim": 0}),
    "an unknown projection": lambda _: request_body(projection={"kind": "cauchy"}),
    "an unknown position": lambda _: request_body(soft_position="middle"),
    "features by number": lambda _: request_body(features=[1]),
    "control characters": lambda _: request_body(exemplars=[{"input": "a\x00b", "output": "c"}]),
    "embeddings of its own": lambda _: request_body(prompt_embeds=[[0.0] * 7]),
}
RAW: dict[str, Callable[[random.Random], Hostile]] = {
    "half a document": lambda d: Hostile(
        "half a document", json.dumps(request_body()).encode()[: d.randrange(1, 200)]
    ),
    "no document": lambda _: Hostile("no document", b""),
    "a list": lambda _: Hostile("a list", b"[]"),
    "bytes": lambda d: Hostile("bytes", d.randbytes(300)),
    "a form": lambda _: Hostile("a form", b"points=1", "application/x-www-form-urlencoded"),
    "deep nesting": lambda _: Hostile("deep nesting", b'{"points":' + b"[" * 5_000),
    "a body beyond the limit": lambda _: Hostile(
        "a body beyond the limit", b'{"request_id":"' + b"x" * (9 * 2**20) + b'"}'
    ),
}


def hostile_requests(count: int = 200, seed: int = 0) -> Iterator[Hostile]:
    """Yield every kind in turn, drawn anew each time."""
    draw = random.Random(seed)
    kinds = [*SPOILED, *RAW]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        if kind in RAW:
            yield RAW[kind](draw)
        else:
            yield Hostile(kind, json.dumps(SPOILED[kind](draw)).encode())
