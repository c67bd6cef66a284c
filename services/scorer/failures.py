"""Failure classes: what a target's bad answer means for the attempt, the example and the job."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any

from instructzero.contracts import ScoreError

QUOTA_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "insufficient_balance", "quota_exceeded"}
)
FILTER_CODES = frozenset({"content_filter", "content_policy_violation", "responsible_ai_policy"})
MODEL_CODES = frozenset({"model_not_found", "model_not_supported", "deploymentnotfound"})
SETUP_CODES = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})
RETRYABLE_STATUS = frozenset({408, 409, 425})


class Kind(Enum):
    """What to do about a failed attempt."""

    RETRY = auto()
    WAIT = auto()
    STOPS_JOB = auto()
    STOPS_EXAMPLE = auto()
    REFUSED = auto()
    """A content filter answered: a score of 0, not a failure."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that gave no answer. `is_sent`: the target may have seen the request."""

    code: str
    message: str
    kind: Kind
    retry_after_seconds: float | None = None
    is_sent: bool = True

    def as_error(self) -> ScoreError:
        """Return the error of the example's line."""
        return ScoreError(
            code=self.code,
            message=self.message,
            retryable=self.kind in {Kind.RETRY, Kind.WAIT},
            stops_job=self.kind is Kind.STOPS_JOB,
        )


def classify(
    target: str, status: int, headers: Mapping[str, str], body: bytes, *, said: str = ""
) -> Failure:
    """Return what an error response means.

    Args:
        target: its registered name, for the message.
        status: the HTTP status; 200 for an error body that came with it.
        headers: of the response, names in lower case.
        body: as received.
        said: what the target wrote, already stripped of secrets; shown to a person.
    """
    codes = error_codes(body)
    quoted = f": {said}" if said else ""
    if codes & FILTER_CODES:
        return Failure("content_filter", "the target's content filter answered", Kind.REFUSED)
    stops = _stops_job(target, status, codes, quoted)
    if stops is not None:
        return Failure(*stops, Kind.STOPS_JOB)
    if status == 429 or "rate_limit_exceeded" in codes:
        return Failure(
            "rate_limited",
            f"target {target} asks for fewer requests (429)",
            Kind.WAIT,
            retry_after_seconds=retry_after(headers),
        )
    if status >= 500 or status in RETRYABLE_STATUS:
        return Failure(
            "target_error",
            f"target {target} failed ({status})",
            Kind.RETRY,
            retry_after_seconds=retry_after(headers),
        )
    if status < 300:
        return Failure("broken_answer", f"target {target} sent an error with 200", Kind.RETRY)
    message = f"target {target} refused this request ({status}){quoted}"
    return Failure("request_refused", message, Kind.STOPS_EXAMPLE)


def _stops_job(
    target: str, status: int, codes: frozenset[str], quoted: str
) -> tuple[str, str] | None:
    """Return code and message where no other example of the job can succeed either."""
    if status == 402 or codes & QUOTA_CODES:
        return (
            "insufficient_quota",
            f"the account behind target {target} has no quota left; add credit or raise its limit, "
            "then resume the job",
        )
    if status == 401 or "invalid_api_key" in codes:
        return (
            "target_unauthorized",
            f"target {target} refused the key (401); correct api_key in the targets file",
        )
    if status == 403:
        return (
            "target_forbidden",
            f"the key of target {target} may not use this model (403); ask its owner for access",
        )
    if status == 404 or codes & MODEL_CODES:
        return (
            "target_not_found",
            f"target {target} does not know the model or the address (404); correct model or "
            "base_url in the targets file",
        )
    if 300 <= status < 400:
        return (
            "target_redirected",
            f"target {target} answers with a redirect, which is never followed because it would "
            "take the key along; write the final address as base_url",
        )
    if status == 400 and codes & SETUP_CODES:
        return (
            "target_misconfigured",
            f"target {target} does not take a parameter of its sampling section{quoted}",
        )
    return None


def error_codes(body: bytes) -> frozenset[str]:
    """Return the `code` and `type` of an OpenAI-shaped error body, in lower case."""
    error = error_of(body)
    inner = error.get("innererror")
    found = [error.get("code"), error.get("type")]
    if isinstance(inner, Mapping):
        found.append(inner.get("code"))
    return frozenset(value.lower() for value in found if isinstance(value, str))


def error_of(body: bytes) -> Mapping[str, Any]:
    """Return the `error` object of a body; empty if it has none."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = parsed.get("error") if isinstance(parsed, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds to wait that the headers ask for: milliseconds, seconds or a date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            seconds = _until(value, now or datetime.now(UTC))
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _until(date: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError):
        return math.nan
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - now).total_seconds()
