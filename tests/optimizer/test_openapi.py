"""The API's own description: valid, complete, and true under generated requests."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.optimizer.openapi import EXAMPLE_JOB
from services.optimizer.spec_json import parse_spec
from tests.optimizer.apis import PROBLEM, Api, body

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def test_generated_requests_find_no_fault_and_no_undescribed_answer(server: str) -> None:
    with httpx.Client(base_url=server, timeout=60) as http:
        job_id = http.post("/jobs", json=body(budget={"calls": 5})).json()["id"]
        while http.get(f"/jobs/{job_id}?wait=30").json()["finished_at"] is None:
            pass
    n_answers: Counter[int] = Counter()
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        takes_something = operation.query or operation.headers or operation.body
        for mode in GenerationMode if takes_something else (GenerationMode.POSITIVE,):
            check_operation(operation.as_strategy(generation_mode=mode), job_id, n_answers)
    assert n_answers[200] > 50
    assert n_answers[422] > 50
    assert n_answers[409] > 0


def check_operation(cases: Any, job_id: str, n_answers: Counter[int]) -> None:
    """Send generated requests to one operation, about a job that has ended."""

    @settings(
        max_examples=10,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Any) -> None:
        if case.method != "DELETE" and "job_id" in (case.path_parameters or {}):
            case.path_parameters["job_id"] = job_id
        if isinstance(case.query, dict):
            case.query.pop("wait", None)
        if case.method == "POST" and isinstance(case.body, dict):
            case.body["target"] = "world"
            case.query = {"dry_run": "true"}
        response = case.call(timeout=20)
        n_answers[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    check()


async def test_every_route_describes_its_problems(api: Api) -> None:
    document = await api.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["description"], (method, path)
            if path in {"/healthz", "/readyz", "/version"}:
                assert operation["security"] == []
                continue
            assert "401" in operation["responses"], (method, path)
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")):
                    assert PROBLEM in response["content"], (method, path, status)


async def test_the_example_job_is_valid_and_bare_names_are_described(api: Api) -> None:
    assert parse_spec(json.dumps(EXAMPLE_JOB).encode()).spec.name == "antonyms"
    schemas = (await api.get("/openapi.json"))["components"]["schemas"]
    assert len(schemas["StrategySpec"]["anyOf"]) == 2
    output = schemas["Example"]["properties"]["output"]
    assert {entry["type"] for entry in output["anyOf"]} == {"string", "array"}
