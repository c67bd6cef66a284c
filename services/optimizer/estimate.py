"""What a job will cost, before anything is spent. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from instructzero.contracts import Estimate, Expected, JobSpec, StrategyName, TargetView
from services.optimizer.forecast import foresee
from services.optimizer.jobs import (
    GUESS_MARGIN,
    LONG,
    SHORT,
    TYPICAL,
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
from services.optimizer.learned import Learned
from services.optimizer.outlook import Guess, Outlook, Spent
from services.optimizer.search.allowance import CALLS_PER_TRIAL, UNBOUNDED_TRIALS
from services.optimizer.search.report import MIN_PAIRS, FinalCheckPlan, plan_final_check

BYTES_PER_GENERATED_TOKEN = 8
"""Enough for the longest instruction that `generator.max_tokens` is likely to give."""
IN_FLIGHT = 32
"""Calls at once where a target does not say."""
FAST, USUAL, SLOW = 0.2, 1.0, 5.0
"""Guesses at the seconds from a request to its answer."""
WHOLE_SET = frozenset({StrategyName.INSTRUCTZERO, StrategyName.RANDOM})
"""Strategies that try every instruction on the same examples, all of them at once."""


class Plan(NamedTuple):
    """The calls that a job will make, as far as its spec says."""

    calls: int
    final_calls: int
    final: FinalCheckPlan
    splits: Splits


def estimate_job(spec: JobSpec, connections: Connections) -> Estimate:
    """Return what the job is expected to cost and what it can cost at most."""
    splits = split_examples(spec)
    outlook, final = outlook_of(spec, connections), _final_check(spec, connections, splits)
    found = foresee(spec.budget, outlook, Spent(), Learned())
    plan = Plan(found.calls.expected, final.reserved_calls * outlook.calls_each, final, splits)
    completion = min(round(plan.calls * connections.target.max_tokens / 2), found.tokens.expected)
    usd_at_most = _usd_at_most(spec, connections, splits) if connections.has_price else None
    usd, usd_interval = _bounded(found.usd, usd_at_most)
    return Estimate(
        calls=plan.calls,
        calls_interval=found.calls.interval,
        calls_at_most=spec.budget.calls,
        prompt_tokens=found.tokens.expected - completion,
        completion_tokens=completion,
        tokens_interval=found.tokens.interval,
        usd=usd,
        usd_interval=usd_interval,
        usd_at_most=usd_at_most,
        seconds=found.seconds.expected,
        seconds_interval=found.seconds.interval,
        final_check_calls=plan.final_calls,
        notes=tuple(_notes(spec, connections.target, plan)),
    )


def outlook_of(spec: JobSpec, connections: Connections) -> Outlook:
    """Return what is known of a job's cost before its start.

    The low end of a guess takes instructions and answers to be short, the high end takes them to
    be as long as generator and target may write.
    """
    splits, each = split_examples(spec), calls_per_evaluation(spec)
    short, typical, long = (
        typical_call(spec, connections, splits, texts) for texts in (SHORT, TYPICAL, LONG)
    )
    final = _final_check(spec, connections, splits)
    return Outlook(
        calls_each=each,
        most_evaluations=_most_evaluations(spec, splits, typical, final),
        final_evaluations=final.reserved_calls,
        leftover_evaluations=_leftover(spec, connections, splits, final),
        may_stop_early=spec.stop.score is not None,
        tokens=Guess(*(call.tokens * each for call in (short, typical, long))),
        usd=Guess(*(call.usd * each for call in (short, typical, long)))
        if connections.has_price
        else None,
        seconds=Guess(
            *(
                _seconds(connections.target, call.tokens, latency) * each
                for call, latency in ((short, FAST), (typical, USUAL), (long, SLOW))
            )
        ),
    )


def _bounded(
    found: Expected[float] | None, most: float | None
) -> tuple[float | None, tuple[float, float] | None]:
    """Return an amount of money and its interval, none of it beyond what is possible."""
    if found is None:
        return None, None
    bound = math.inf if most is None else most
    low, expected, high = (
        min(round(usd, 6), bound) for usd in (found.interval[0], found.expected, found.interval[1])
    )
    return expected, (low, high)


def _final_check(spec: JobSpec, connections: Connections, splits: Splits) -> FinalCheckPlan:
    affordable = affordable_calls(spec, typical_call(spec, connections, splits))
    return plan_final_check(
        None if affordable is None else affordable // calls_per_evaluation(spec),
        len(splits.test),
        spec.task.baseline is not None,
    )


def _most_evaluations(
    spec: JobSpec, splits: Splits, typical: Cost, final: FinalCheckPlan
) -> int | None:
    """Return what the strategy asks for at most if no budget stops it; None: anything."""
    affordable, trials = affordable_calls(spec, typical), spec.budget.trials
    bounds = []
    if affordable is not None and spec.budget.calls is None:
        n = affordable * GUESS_MARGIN // calls_per_evaluation(spec)
        bounds.append(max(n - final.reserved_calls, 0))
    if trials is not None or affordable is None:
        per_trial = _examples_per_trial(spec, splits)
        if affordable is None and spec.strategy.name not in WHOLE_SET:
            per_trial = min(per_trial, CALLS_PER_TRIAL)
        bounds.append((UNBOUNDED_TRIALS if trials is None else trials) * per_trial)
    return min(bounds) if bounds else None


def _examples_per_trial(spec: JobSpec, splits: Splits) -> int:
    """Return on how many examples an instruction is tried that is tried on all it can be."""
    asked = spec.strategy.options.get("examples") if spec.strategy.name in WHOLE_SET else None
    return min(int(asked or len(splits.validation)), len(splits.validation))


def _leftover(
    spec: JobSpec, connections: Connections, splits: Splits, final: FinalCheckPlan
) -> int:
    """Return how many evaluations less than the budget pays for there may be.

    One more instruction may not fit as a whole; tokens and money must hold the worst that a call
    can cost before it is made; a winner that is the baseline is measured once.
    """
    left = 0
    budget = spec.budget
    is_bounded = any(bound is not None for bound in (budget.calls, budget.tokens, budget.usd))
    if is_bounded and spec.strategy.name in WHOLE_SET:
        left += _examples_per_trial(spec, splits) - 1
    if budget.tokens is not None or budget.usd is not None:
        typical = typical_call(spec, connections, splits)
        longest = max(splits.validation, key=lambda example: len(example.input))
        instruction = "x" * (spec.generator.max_tokens * BYTES_PER_GENERATED_TOKEN)
        worst = worst_call(spec, connections, instruction, longest)
        left += math.ceil(worst.tokens / typical.tokens)
    if "baseline" in final.arms:
        left += final.n_examples
    return left


def _limit(target: TargetView, name: str) -> float | None:
    value = target.limits.get(name)
    return float(value) if isinstance(value, int | float) else None


def _per_second(target: TargetView, unit: str) -> float | None:
    per_minute = _limit(target, f"{unit}_per_minute")
    return None if per_minute is None else per_minute / 60


def _seconds(target: TargetView, tokens: int, latency: float) -> float:
    """Return the time from one call to the next: what the limits or the latency make it."""
    times = [latency / (_limit(target, "in_flight") or IN_FLIGHT)]
    for amount, unit in ((1, "requests"), (tokens, "tokens")):
        rate = _per_second(target, unit)
        if rate is not None:
            times.append(amount / rate)
    return max(times)


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
