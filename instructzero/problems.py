"""Answers that are errors: a problem document becomes the exception that the server raised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import httpx
from pydantic import ValidationError

from instructzero.contracts import ProblemDocument
from instructzero.errors import (
    Conflict,
    FieldProblem,
    InstructZeroError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    PreconditionFailed,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)


def _tree(kind: type[InstructZeroError]) -> Iterator[type[InstructZeroError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


BY_CODE: Mapping[str, type[InstructZeroError]] = {
    kind.code: kind for kind in reversed(list(_tree(InstructZeroError)))
}
BY_STATUS: Mapping[int, type[InstructZeroError]] = {
    kind.status: kind
    for kind in (
        InvalidRequest,
        Unauthorized,
        NotFound,
        Conflict,
        PreconditionFailed,
        PayloadTooLarge,
        UnsupportedMediaType,
        Overloaded,
        Unavailable,
    )
} | {502: Unavailable, 504: Unavailable}


def error_of(response: httpx.Response) -> InstructZeroError:
    """Return the error that an answer of 400 or more stands for."""
    by_status = BY_STATUS.get(response.status_code, InstructZeroError)
    try:
        problem = ProblemDocument.model_validate_json(response.content)
    except ValidationError:
        return by_status(
            f"the server answered {response.status_code} without saying why; check that the "
            "address is an InstructZero server's",
            reason="unexpected_answer",
            retry_after_seconds=_retry_after(response),
        )
    kind = BY_CODE.get(problem.code, by_status)
    return kind(
        problem.detail,
        errors=[FieldProblem(error.pointer, error.detail) for error in problem.errors],
        reason=problem.code,
        retry_after_seconds=_retry_after(response),
    )


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else None


def unreachable(error: httpx.TransportError) -> Unavailable:
    """Return the error for a server that did not answer."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        advice = "check the address and that the server runs (`instructzero serve`)"
    elif isinstance(error, httpx.TimeoutException):
        advice = "it may be busy: try again, or give the client a longer timeout_seconds"
    else:
        advice = "the connection broke: check the network and the server's log, and try again"
    return Unavailable(f"the server does not answer ({type(error).__name__}); {advice}")
