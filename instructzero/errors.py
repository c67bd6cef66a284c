"""The one exception tree. The class fixes the code, the HTTP status and whether a retry can help.

InstructZeroError
├── InvalidRequest            422  the request cannot be carried out as written
│   ├── InvalidSpec           422  a job spec, with one pointer and detail per field
│   ├── UnknownTarget         422  the spec names a target that is not registered
│   └── IdempotencyMismatch   422  the same Idempotency-Key with another body
├── Unauthorized              401  no API key, or a wrong one
├── NotFound                  404
├── Conflict                  409  the job's status does not allow it, or the request is in progress
├── PreconditionFailed        412  If-Match named an old version
├── PayloadTooLarge           413
├── UnsupportedMediaType      415  the body is not JSON
├── Overloaded                429  try again after `retry_after_seconds`
├── Unavailable               503  a part that is needed does not answer
│   ├── GeneratorUnavailable  503
│   ├── ScorerUnavailable     503
│   │   └── ScorerNotReached  503  it took nothing on: no paid call was made
│   ├── RateLimiterUnavailable 503 Redis did not answer, so no paid call may be made
│   └── StoreUnavailable      503
├── JobStopped                     a job cannot go on; the code is the job's status_reason
│   ├── TargetRefused              bad key, unknown model, quota gone
│   ├── GeneratorRefused           the generator answered 4xx
│   ├── ScorerRefused         503  the scorer answered 4xx
│   ├── FingerprintChanged         the search space changed under the job
│   └── JournalDamaged             the stored record does not match its own checksum
├── LeaseLost                      another runner owns the job; stop at once
└── IllConditionedKernel           a covariance matrix has no Cholesky factor
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class FieldProblem(NamedTuple):
    """One field that is wrong: an RFC 6901 pointer into the body and what to do about it."""

    pointer: str
    detail: str


class InstructZeroError(Exception):
    """Anything this product says to a person or a client on purpose."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        retry_after_seconds: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Say what happened.

        Args:
            detail: one sentence that says what to do; never contains a key or echoes input.
            errors: the fields that are wrong.
            retry_after_seconds: when a retry can succeed, if known.
            reason: a code more precise than the class's, e.g. `insufficient_quota`.
        """
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason or self.code


class InvalidRequest(InstructZeroError):
    """The request cannot be carried out as written."""

    code, status = "invalid_request", 422


class InvalidSpec(InvalidRequest):
    """A job spec with at least one wrong field."""

    code = "invalid_spec"


class UnknownTarget(InvalidRequest):
    """The spec names a target that no configuration registers."""

    code = "unknown_target"


class IdempotencyMismatch(InvalidRequest):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_key_reused"


class Unauthorized(InstructZeroError):
    """No API key, or one that is not registered."""

    code, status = "unauthorized", 401


class NotFound(InstructZeroError):
    """There is no such resource."""

    code, status = "not_found", 404


class Conflict(InstructZeroError):
    """The resource's present state does not allow it."""

    code, status = "conflict", 409


class PreconditionFailed(InstructZeroError):
    """If-Match named a version that is no longer current."""

    code, status = "precondition_failed", 412


class PayloadTooLarge(InstructZeroError):
    """The body is larger than the server reads."""

    code, status = "payload_too_large", 413


class UnsupportedMediaType(InstructZeroError):
    """The body is declared as something the server does not read."""

    code, status = "unsupported_media_type", 415


class Overloaded(InstructZeroError):
    """More work is waiting than the service accepts."""

    code, status, retryable = "overloaded", 429, True


class Unavailable(InstructZeroError):
    """A part that is needed does not answer; nothing was spent."""

    code, status, retryable = "unavailable", 503, True


class GeneratorUnavailable(Unavailable):
    """The generator does not answer."""

    code = "generator_unavailable"


class ScorerUnavailable(Unavailable):
    """The scorer does not answer."""

    code = "scorer_unavailable"


class ScorerNotReached(ScorerUnavailable):
    """The scorer took nothing on, so no paid call was made for the request."""


class RateLimiterUnavailable(Unavailable):
    """Redis did not answer, so no paid call may be made."""

    code = "rate_limiter_unavailable"


class StoreUnavailable(Unavailable):
    """The database does not answer."""

    code = "store_unavailable"


class JobStopped(InstructZeroError):
    """The job cannot go on; `reason` becomes its status reason."""

    code = "job_stopped"


class TargetRefused(JobStopped):
    """The target gave a terminal answer: bad key, unknown model, quota gone."""

    code = "target_refused"


class GeneratorRefused(JobStopped):
    """The generator refused the request as wrong."""

    code = "generator_refused"


class ScorerRefused(JobStopped):
    """The scorer refused the request as wrong: another attempt will not do better."""

    code, status = "scorer_refused", 503


class FingerprintChanged(JobStopped):
    """The generator's search space is not the one the job began with."""

    code = "fingerprint_changed"


class JournalDamaged(JobStopped):
    """A stored decision does not match its own checksum."""

    code = "journal_damaged"


class LeaseLost(InstructZeroError):
    """Another runner owns the job now; this one must stop without another write."""

    code, status = "lease_lost", 409


class IllConditionedKernel(InstructZeroError):
    """A covariance matrix has no Cholesky factor, even with jitter."""

    code = "ill_conditioned_kernel"
