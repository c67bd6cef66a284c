"""What a job will cost, before anything is spent. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from instructzero.contracts import Estimate, JobSpec, TargetView
from services.optimizer.jobs import (
    Connections,
    Cost,
    Splits,
    affordable_calls,
    calls_per_evaluation,
    money,
    split_examples,
    typical_call,
    worst_call,
)
from services.optimizer.search.report import MIN_PAIRS, FinalCheckPlan, plan_final_check

BYTES_PER_GENERATED_TOKEN = 8
"""Enough for the longest instruction that `generator.max_tokens` is likely to give."""
SECONDS_PER_CALL = 1.0
"""Guess at a call's latency where only time bounds a job."""


class Plan(NamedTuple):
    """The calls that a job will make, as far as its spec says."""

    calls: int
    final_calls: int
    final: FinalCheckPlan
    splits: Splits


def estimate_job(spec: JobSpec, connections: Connections) -> Estimate:
    """Return what the job is expected to cost and what it can cost at most."""
    target, splits = connections.target, split_examples(spec)
    typical = typical_call(spec, connections, splits)
    plan = _plan(spec, target, splits, typical)
    completion = round(plan.calls * target.max_tokens / 2)
    has_price = connections.has_price
    return Estimate(
        calls=plan.calls,
        calls_at_most=spec.budget.calls,
        prompt_tokens=max(plan.calls * typical.tokens - completion, 0),
        completion_tokens=completion,
        usd=round(plan.calls * typical.usd, 6) if has_price else None,
        usd_at_most=_usd_at_most(spec, connections, splits) if has_price else None,
        seconds=_seconds(spec, target, plan.calls, plan.calls * typical.tokens),
        final_check_calls=plan.final_calls,
        notes=tuple(_notes(spec, target, plan)),
    )


def _plan(spec: JobSpec, target: TargetView, splits: Splits, typical: Cost) -> Plan:
    each = calls_per_evaluation(spec)
    affordable = affordable_calls(spec, typical)
    final = plan_final_check(
        None if affordable is None else affordable // each,
        len(splits.test),
        spec.task.baseline is not None,
    )
    final_calls = final.reserved_calls * each
    bounds = [] if affordable is None else [affordable]
    if spec.budget.trials is not None:
        bounds.append(spec.budget.trials * len(splits.validation) * each + final_calls)
    if not bounds:  # only time bounds the job
        seconds = spec.budget.seconds or 0.0
        in_flight = _limit(target, "in_flight") or 1.0
        rate = min(in_flight / SECONDS_PER_CALL, _per_second(target, "requests") or math.inf)
        bounds.append(max(int(seconds * rate), 1))
    return Plan(min(bounds), final_calls, final, splits)


def _limit(target: TargetView, name: str) -> float | None:
    value = target.limits.get(name)
    return float(value) if isinstance(value, int | float) else None


def _per_second(target: TargetView, unit: str) -> float | None:
    per_minute = _limit(target, f"{unit}_per_minute")
    return None if per_minute is None else per_minute / 60


def _seconds(spec: JobSpec, target: TargetView, calls: int, tokens: int) -> float | None:
    """Return how long the rate limits alone make the job; None where there are none."""
    times = [
        amount / rate
        for amount, unit in ((calls, "requests"), (tokens, "tokens"))
        if (rate := _per_second(target, unit)) is not None
    ]
    bound = spec.budget.seconds
    if not times:
        return bound
    return round(min(max(times), math.inf if bound is None else bound), 1)


def _usd_at_most(spec: JobSpec, connections: Connections, splits: Splits) -> float | None:
    """Return a bound on the money: the budget's own, or what its calls or tokens can cost."""
    budget, bounds = spec.budget, []
    if budget.usd is not None:
        bounds.append(budget.usd)
    if budget.tokens is not None:
        called = [one for one in (connections.target, connections.judge) if one is not None]
        bounds.append(
            max(max(money(one, budget.tokens, 0), money(one, 0, budget.tokens)) for one in called)
        )
    if budget.calls is not None:
        given = (*spec.task.instructions, spec.task.baseline or "")
        longest = max(len(text.encode()) for text in given)
        instruction = "x" * max(longest, spec.generator.max_tokens * BYTES_PER_GENERATED_TOKEN)
        dearest = max(
            worst_call(spec, connections, instruction, example).usd
            for example in (*splits.validation, *splits.test)
        )
        bounds.append(budget.calls * dearest)
    return round(min(bounds), 6) if bounds else None


def _notes(spec: JobSpec, target: TargetView, plan: Plan) -> Iterator[str]:
    n_validation = len(plan.splits.validation)
    if plan.splits.test_set == "held_out":
        yield (
            f"No test set: {len(plan.splits.test)} of {len(spec.task.validation)} validation "
            "examples are set aside to measure the winner."
        )
    if plan.splits.test_set == "none":
        yield (
            "No test set, and too few validation examples to set some aside: the winner is not "
            "measured on fresh examples, so there will be no verdict."
        )
    elif plan.final.n_examples < MIN_PAIRS or len(plan.final.arms) < 2:
        yield (
            f"The final check can measure {plan.final.n_examples} fresh examples; a verdict needs "
            f"{MIN_PAIRS} under both instructions. Give a larger budget or more test examples."
        )
    search_calls = plan.calls - plan.final_calls
    each = calls_per_evaluation(spec)
    if search_calls < each * n_validation:
        yield (
            f"The budget leaves {max(search_calls, 0)} calls for the search, less than one "
            f"instruction needs on all {n_validation} validation examples."
        )
    if each > 1:
        yield f"Every answer takes {each} calls (repeats and judge)."
    if spec.stop.score is not None:
        yield "The job ends earlier, and costs less, if the stop score is reached."
    if target.price is None:
        yield "The target has no price, so money is neither estimated nor bounded."
    only_time = all(
        getattr(spec.budget, name) is None for name in ("calls", "tokens", "usd", "trials")
    )
    if only_time:
        yield "Only time bounds the job: the number of calls is a guess at one second a call."
