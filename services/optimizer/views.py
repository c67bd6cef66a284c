"""Rows to wire models: what a job, a trial and an event look like from outside. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from instructzero.contracts import (
    Best,
    Event,
    ExampleScore,
    Forecast,
    Job,
    JobSpec,
    JobStatus,
    Progress,
    StatusReason,
    TrialDetail,
    TrialView,
    Usage,
)
from services.optimizer.final import usage_of
from services.optimizer.forecast import foresee, spent_all
from services.optimizer.jobs import split_examples
from services.optimizer.learned import Learned
from services.optimizer.outlook import Outlook, Spent
from services.optimizer.reads import Timing, Tried
from services.optimizer.results import LEVEL
from services.optimizer.search.report import score_interval
from services.optimizer.tables import EvaluationRow, EventRow, JobRow


def job_view(row: JobRow, *, now: datetime | None = None) -> Job:
    """Return a job as the API shows it; `now` only matters for the time that is left."""
    spec = JobSpec.model_validate(row.spec)
    spent = _spent(row, now or datetime.now(UTC))
    forecast = _forecast(row, spec, spent)
    return Job(
        id=row.id,
        name=row.name,
        status=JobStatus(row.status),
        status_reason=StatusReason(**row.status_reason) if row.status_reason else None,
        stop_reason=row.stop_reason,
        conditions=tuple(row.conditions),
        cancel_requested=row.cancel_requested,
        pause_requested=row.pause_requested,
        progress=_progress(row, spec, spent, forecast),
        best=Best.model_validate(row.best) if row.best else None,
        usage=usage_of(row, has_price=_has_price(row)),
        forecast=forecast,
        spec=spec,
        spec_hash=row.spec_hash,
        seed=row.seed,
        labels=row.labels,
        version=row.version,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _has_price(row: JobRow) -> bool:
    """Whether the job's target has a price, as far as its ledger shows."""
    return row.usd + row.in_doubt_usd + row.reserved_usd > 0


def _spent(row: JobRow, now: datetime) -> Spent:
    elapsed = 0.0
    if row.started_at is not None:
        elapsed = max(((row.finished_at or now) - row.started_at).total_seconds(), 0.0)
    return Spent(
        evaluations=row.n_evaluations,
        cached=row.cached_calls,
        trials=row.n_trials,
        calls=row.calls,
        failed_calls=row.failed_calls,
        in_doubt_calls=row.in_doubt_calls,
        tokens=row.prompt_tokens + row.completion_tokens,
        usd=row.usd,
        in_doubt_tokens=row.in_doubt_tokens,
        in_doubt_usd=row.in_doubt_usd,
        seconds=elapsed,
    )


def _forecast(row: JobRow, spec: JobSpec, spent: Spent) -> Forecast | None:
    """Return what the job will have cost; None: it is of a version that stored no outlook."""
    if JobStatus(row.status).is_finished or row.cancel_requested:
        return spent_all(spent, has_price=_has_price(row))
    outlook = Outlook.of(row.outlook)
    if outlook is None:
        return None
    return foresee(spec.budget, outlook, spent, Learned.of(row.learned))


def _progress(row: JobRow, spec: JobSpec, spent: Spent, forecast: Forecast | None) -> Progress:
    budget, totals = spec.budget, spent.totals()
    used = [
        (row.calls, budget.calls),
        (row.n_trials, budget.trials),
        (totals.tokens, budget.tokens),
        (totals.usd, budget.usd),
        (totals.seconds, budget.seconds),
    ]
    share = min(max(part / limit for part, limit in used if limit is not None), 1.0)
    eta = None
    if row.status == JobStatus.RUNNING and forecast is not None:
        eta = round(max(forecast.seconds.expected - spent.seconds, 0.0), 1)
    elif row.status == JobStatus.RUNNING and share > 0:
        eta = round(spent.seconds * (1 - share) / share, 1)
    return Progress(
        trials=row.n_trials,
        calls=row.calls,
        evaluations=row.n_evaluations,
        instructions=row.n_arms,
        step=row.step,
        eta_seconds=eta,
        share=round(share, 4),
    )


def trial_view(tried: Tried, scores: Sequence[float], n_validation: int) -> TrialView:
    """Return one trial as lists show it: nothing here depends on when or where the job ran."""
    return TrialView(**_trial_fields(tried, scores, n_validation))


def _trial_fields(tried: Tried, scores: Sequence[float], n_validation: int) -> dict[str, object]:
    arm, point = tried
    found = score_interval(scores, LEVEL)
    note = (point.note if point is not None else None) or {}
    return {
        "trial": arm.trial,
        "arm": arm.n,
        "source": arm.source,
        "step": arm.trial_step,
        "z": None if point is None else tuple(point.z),
        "n_points": arm.n_points,
        "instruction": arm.text,
        "score": found.mean,
        "interval": (found.low, found.high),
        "n_examples": len(scores),
        "status": "completed" if len(scores) == n_validation else "partial",
        "acquisition": note.get("acquisition"),
        "gp_mean": note.get("mean"),
        "gp_sd": note.get("sd"),
    }


def n_validation_of(spec: JobSpec) -> int:
    """Return how many examples the search may see."""
    return len(split_examples(spec).validation)


def trial_detail(
    tried: Tried, evaluations: Sequence[EvaluationRow], spec: JobSpec, timing: Timing
) -> TrialDetail:
    """Return one trial with its answers and what they cost."""
    validation = split_examples(spec).validation
    scored = [row for row in evaluations if row.score is not None]
    fields = _trial_fields(tried, [row.score or 0.0 for row in scored], len(validation))
    examples = tuple(
        ExampleScore(
            example=row.example,
            input=validation[row.example].input,
            expected=validation[row.example].output,
            answer=row.answer,
            score=row.score or 0.0,
        )
        for row in scored
    )
    return TrialDetail(
        **fields,
        examples=examples,
        usage=_usage(evaluations),
        started_at=timing.started_at,
        finished_at=timing.finished_at,
    )


def _usage(evaluations: Sequence[EvaluationRow]) -> Usage:
    priced = [row.usd for row in evaluations if row.usd is not None]
    return Usage(
        calls=sum(row.calls for row in evaluations),
        cached_calls=sum(row.is_cached for row in evaluations),
        failed_calls=sum(row.failed_calls for row in evaluations),
        refused_answers=sum(row.is_refused for row in evaluations),
        prompt_tokens=sum(row.prompt_tokens for row in evaluations if not row.is_cached),
        completion_tokens=sum(row.completion_tokens for row in evaluations if not row.is_cached),
        usd=round(sum(priced), 9) if priced else None,
    )


def event_view(row: EventRow) -> Event:
    """Return an event."""
    return Event(seq=row.seq, at=row.at, type=row.type, data=row.data)
