"""Numbers and states in words: the same in the report, the tables and the progress line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from instructzero.contracts import (
    Comparison,
    Estimate,
    Expected,
    Job,
    JobStatus,
    Measured,
    Result,
    Verdict,
)

NOTHING = "–"
LEVEL = "90\u00a0%"

STATUS_WORDS = {
    JobStatus.QUEUED: "waiting for a runner",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSED: "paused",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
STOP_WORDS = {
    "budget_calls": "the budget of calls is spent",
    "budget_trials": "the budget of trials is spent",
    "budget_tokens": "the budget of tokens is spent",
    "budget_usd": "the budget of money is spent",
    "budget_seconds": "the time is over",
    "score_reached": "the wanted score was reached",
    "search_complete": "the search had nothing more to try",
}
CONDITION_WORDS = {
    "rate_limited": "rate limited",
    "rate_limiter_unavailable": "rate limiter away",
    "target_unavailable": "target does not answer",
    "generator_unavailable": "generator does not answer",
    "budget_low": "budget nearly spent",
}
VERDICT_WORDS = {
    Verdict.BETTER: "better than {}",
    Verdict.NOT_BETTER: "not better than {}",
    Verdict.NOT_ENOUGH_DATA: "not enough data to tell it from {}",
}
REFERENCE_WORDS = {"baseline": "your baseline", "empty": "no instruction at all"}


def score(value: float | None) -> str:
    """Return a score with two decimals."""
    return NOTHING if value is None else f"{value:.2f}"


def interval(bounds: tuple[float, float] | None) -> str:
    """Return an interval as two scores."""
    return NOTHING if bounds is None else f"{score(bounds[0])} to {score(bounds[1])}"


def measured(found: Measured | None) -> str:
    """Return a mean with its interval and the number of examples."""
    if found is None:
        return "not measured"
    return f"{score(found.score)} ({interval(found.interval)}, n\u00a0=\u00a0{found.n})"


def difference(found: Comparison) -> str:
    """Return the paired difference with its interval, signed."""
    if found.difference is None or found.interval is None:
        return "not measured"
    low, high = found.interval
    return f"{found.difference:+.2f} ({low:+.2f} to {high:+.2f}, n\u00a0=\u00a0{found.n})"


def verdict(found: Comparison) -> str:
    """Return the verdict in a few words."""
    return VERDICT_WORDS[found.verdict].format(REFERENCE_WORDS[found.reference])


def count(number: int | None, unit: str = "") -> str:
    """Return a whole number in groups of three, and its unit in the right number."""
    if number is None:
        return NOTHING
    plain = f"{number:,}"
    return f"{plain} {unit if number == 1 else unit + 's'}" if unit else plain


def usd(amount: float | None) -> str:
    """Return an amount of money; small ones keep two significant digits."""
    if amount is None:
        return "no price set"
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.4f}" if amount >= 0.001 else f"${amount:.2g}"


def seconds(duration: float | None) -> str:
    """Return a duration for a person."""
    if duration is None:
        return NOTHING
    whole = max(0, round(duration))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def elapsed(job: Job) -> str:
    """Return how long a job took from its start to its end."""
    if job.started_at is None or job.finished_at is None:
        return NOTHING
    return seconds((job.finished_at - job.started_at) / timedelta(seconds=1))


def conditions(names: Sequence[str]) -> str:
    """Return what a job is waiting for."""
    return ", ".join(CONDITION_WORDS.get(name, name.replace("_", " ")) for name in names)


def stop_reason(reason: str | None) -> str:
    """Return why the search ended."""
    if reason is None:
        return NOTHING
    return STOP_WORDS.get(reason, reason.replace("_", " "))


def estimate(found: Estimate) -> str:
    """Return an estimate in one line."""
    at_most = "" if found.calls_at_most is None else f" (never more than {found.calls_at_most:,})"
    tokens = found.prompt_tokens + found.completion_tokens
    parts = [
        f"about {count(found.calls, 'call')}{at_most.replace(',', chr(0x202F))}",
        f"{count(tokens, 'token')}{_between(found.tokens_interval, count)}",
    ]
    if found.usd is not None:
        bounds = [_range(found.usd_interval, usd)] if found.usd_interval else []
        if found.usd_at_most is not None:
            bounds.append(f"at most {usd(found.usd_at_most)}")
        parts.append(usd(found.usd) + (f" ({', '.join(bounds)})" if bounds else ""))
    if found.seconds is not None:
        parts.append(f"about {seconds(found.seconds)}{_between(found.seconds_interval, seconds)}")
    return ", ".join(parts)


def forecast(found: Expected[int] | Expected[float], show: Callable[[Any], str]) -> str:
    """Return an amount that is expected, with its interval where it has a width."""
    low, high = found.interval
    width = "" if show(low) == show(high) else f" ({_range(found.interval, show)})"
    return show(found.expected) + width


def _range(bounds: tuple[Any, Any], show: Callable[[Any], str]) -> str:
    return f"{show(bounds[0])} to {show(bounds[1])}"


def _between(bounds: tuple[Any, Any] | None, show: Callable[[Any], str]) -> str:
    return "" if bounds is None else f" ({_range(bounds, show)})"


def winner_text(result: Result) -> str | None:
    """Return the chosen instruction; None where nothing was tried."""
    return None if result.best is None else result.best.instruction


def shown_instruction(text: str) -> str:
    """Return an instruction for a table; the empty one has a name."""
    return text or "(no instruction)"
