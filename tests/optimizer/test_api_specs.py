"""Specs that are wrong: each is refused with the field's name, none is stored or echoed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instructzero.errors import InvalidSpec
from services.optimizer.spec_json import parse_spec
from tests.optimizer.apis import Api, body, problem
from tests.optimizer.broken_specs import BROKEN

JSON = {"content-type": "application/json"}


async def test_broken_specs_are_refused_by_field_and_none_is_stored(api: Api) -> None:
    for broken in BROKEN:
        response = await api.http.post("/jobs", content=broken.raw, headers=JSON)
        document = problem(response)
        pointers = [error["pointer"] for error in document["errors"]]
        assert broken.pointer in pointers, (broken.name, document)
        assert all(error["detail"] for error in document["errors"])
        assert "Traceback" not in response.text
        assert len(response.content) < 60_000
    assert await api.count() == 0


async def test_a_dry_run_refuses_what_a_job_would(api: Api) -> None:
    for broken in BROKEN:
        response = await api.http.post("/jobs?dry_run=true", content=broken.raw, headers=JSON)
        assert problem(response)["errors"], broken.name


async def test_a_refusal_never_echoes_the_input(api: Api) -> None:
    canary = "sk-canary-0123456789"
    for broken in BROKEN:
        raw = broken.raw.replace(b'"b"', json.dumps(canary).encode())
        response = await api.http.post("/jobs", content=raw, headers=JSON)
        assert problem(response)
        assert canary not in response.text, broken.name


@pytest.mark.parametrize(
    ("change", "value"),
    [("name", "sk-canary\x00"), ("target", "sk canary"), ("seed", "sk-canary"), ("metric", "sk-c")],
)
def test_a_wrong_value_is_not_repeated(change: str, value: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(json.dumps(body() | {change: value}).encode())
    assert "sk-c" not in caught.value.detail
    assert "sk c" not in caught.value.detail


@pytest.mark.parametrize("kind", ["application/yaml", "text/plain", "multipart/form-data", ""])
async def test_only_json_is_read(api: Api, kind: str) -> None:
    response = await api.http.post(
        "/jobs", content=json.dumps(body()), headers={"content-type": kind}
    )
    assert problem(response)["status"] == 415
    assert "application/json" in response.json()["detail"]
    assert await api.count() == 0


async def test_a_body_beyond_the_limit_is_refused_however_it_comes(api: Api) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 1024 * 1024

    declared = await api.http.post("/jobs", content=b" " * (17 * 1024 * 1024), headers=JSON)
    streamed = await api.http.post("/jobs", content=chunks(), headers=JSON)
    assert problem(declared)["code"] == problem(streamed)["code"] == "payload_too_large"


def test_every_wrong_field_is_named_at_once() -> None:
    spec = body(budget={"calls": 5}) | {"seed": -1, "colour": "red", "repeats": 0}
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(json.dumps(spec).encode())
    assert {problem.pointer for problem in caught.value.errors} == {"/seed", "/colour", "/repeats"}


def test_the_largest_spec_is_accepted() -> None:
    spec = body()
    spec["task"]["validation"] = [{"input": f"v{n}", "output": "b"} for n in range(2000)]
    spec["task"]["test"] = [{"input": f"t{n}", "output": "b"} for n in range(5000)]
    assert len(parse_spec(json.dumps(spec).encode()).spec.task.test) == 5000


def test_the_body_hash_does_not_depend_on_spacing_or_order() -> None:
    spec = body()
    tight = parse_spec(json.dumps(spec, separators=(",", ":")).encode())
    wide = parse_spec(json.dumps(dict(reversed(spec.items())), indent=3).encode())
    assert tight == wide
    assert parse_spec(json.dumps(spec | {"seed": 1}).encode()).body_hash != tight.body_hash
