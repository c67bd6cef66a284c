"""What the API's description adds to the routes: problem documents and an example job."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from instructzero.contracts import ProblemDocument
from services.optimizer.auth import OPEN_PATHS

PROBLEM = "application/problem+json"
DESCRIPTIONS = {
    401: "no API key, or one that this server does not know",
    404: "there is no such resource",
    409: "the job's status does not allow it",
    413: "the body is too large",
    415: "the body is not JSON",
    422: "the request cannot be carried out as written; `errors` names the fields",
    429: "too much work is waiting; see Retry-After",
    500: "a fault of ours; the log has it under `request_id`",
    503: "a part that is needed does not answer; nothing was spent",
}

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """Describe problem documents of these statuses."""
    schema = {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}
    return {
        status: {
            "description": DESCRIPTIONS[status],
            "content": {PROBLEM: {"schema": schema}},
        }
        for status in statuses
    }


PROBLEMS = problems(401, 404, 422, 500, 503)

EXAMPLE_JOB: dict[str, Any] = {
    "name": "antonyms",
    "task": {
        "exemplars": [{"input": "sane", "output": "insane"}, {"input": "hot", "output": "cold"}],
        "validation": [
            {"input": "direct", "output": ["indirect"]},
            {"input": "early", "output": ["late"]},
            {"input": "open", "output": ["closed", "shut"]},
            {"input": "rich", "output": ["poor"]},
            {"input": "loud", "output": ["quiet", "silent"]},
        ],
        "baseline": "Write the opposite of the word.",
    },
    "metric": "exact_match",
    "target": "demo",
    "strategy": "default",
    "budget": {"calls": 500, "usd": 0.5},
    "seed": 0,
    "labels": {"team": "search"},
}
CREATE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobSpec"},
                "examples": {"antonyms": {"summary": "a small job", "value": EXAMPLE_JOB}},
            }
        },
    }
}


def describe(app: FastAPI) -> None:
    """Complete the app's OpenAPI document with what the routes do not say themselves."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(FastAPI.openapi(app))
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    _, problem = models_json_schema(
        [(ProblemDocument, "validation")], ref_template="#/components/schemas/{model}"
    )
    schemas |= problem["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for name in ("MetricSpec", "StrategySpec"):  # a bare name is enough
        schemas[name] = {"anyOf": [schemas[name], schemas[name]["properties"]["name"]]}
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}, {}]
    document["paths"]["/metrics"]["get"]["responses"] |= {"401": problems(401)[401]}
    for path in OPEN_PATHS:
        document["paths"][path]["get"]["security"] = []
    return document
