"""The end of a job: measure the winner on fresh examples, then store the result document."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from instructzero.contracts import Comparison, JobStatus, Result, StatusReason, Surrogate, Usage
from services.optimizer import meters, store
from services.optimizer.failpoints import fail_point
from services.optimizer.orders import Order
from services.optimizer.results import Answers, compare, digest, entry
from services.optimizer.state import JobState
from services.optimizer.steps import Step
from services.optimizer.tables import ALGO_VERSION, JobRow

if TYPE_CHECKING:
    from services.optimizer.job_run import JobRun

BLOCK = 8


async def begin(run: JobRun, group: asyncio.TaskGroup) -> None:
    """Begin the final check while the last answers of the search are still to come.

    The baseline is measured whoever wins, so its first examples can be bought at once: as many as
    are handed over at a time. More would leave it measured on more examples than the winner where
    the money ends early.
    """
    if run.early_check is not None:
        return
    step = next((step for step in run.state.steps if step.kind == "baseline"), None)
    if step is None:
        step = await _decide_baseline(run)
    if step is not None:
        order = Order(step.number, "test", step.pairs)
        run.early_check = group.create_task(run.buyer.buy(order))


async def _decide_baseline(run: JobRun) -> Step | None:
    state = run.state
    arm = _baseline(state)
    if "baseline" not in state.plan.arms or arm is None:
        return None
    n_examples = min(state.plan.n_examples, state.handed_over)
    pairs = [[arm, number] for number in test_order(state)[:n_examples]]
    return await _journal(run, "baseline", {"evaluations": pairs})


def _baseline(state: JobState) -> int | None:
    return next((arm.n for arm in state.arms if arm.source == "baseline"), None)


async def measure_winner(run: JobRun) -> None:
    """Buy the final check: the winner and its references on the same fresh examples."""
    step = run.state.steps[-1] if run.state.steps else None
    if step is None or step.kind != "final":
        step = await _decide(run)
    if step.is_done:
        return
    run.permission.in_final_check = True
    numbers = list(dict.fromkeys(step.content["arms"].values()))
    examples: list[int] = step.content["examples"]
    blocks = [examples[start : start + BLOCK] for start in range(0, len(examples), BLOCK)]
    pairs = [(arm, number) for block in blocks for arm in numbers for number in block]
    if run.early_check is not None:
        early = {pair for one in run.state.steps if one.kind == "baseline" for pair in one.pairs}
        others = [pair for pair in pairs if pair not in early]
        await run.buyer.buy(Order(step.number, "test", others))
        await run.early_check
    await run.buyer.buy(Order(step.number, "test", pairs))
    run.permission.check_interruption()
    for one in run.state.steps:
        if not one.is_done:
            await _finish_step(run, one)


async def _finish_step(run: JobRun, step: Step) -> None:
    await store.transact(
        run.deps.database.writes,
        lambda s: store.finish_step(s, run.claim, step=step.number, best=None),
    )
    step.is_done = True


async def _decide(run: JobRun) -> Step:
    """Journal whom to measure on which examples."""
    state = run.state
    winner = await run.think(run.strategy.recommend)
    arms: dict[str, int] = {}
    if winner is not None:
        arms["winner"] = winner.arm
        baseline = _baseline(state)
        if "baseline" in state.plan.arms and baseline is not None:
            arms["baseline"] = baseline
        if "empty" in state.plan.arms:
            arms["empty"] = await _empty_arm(run)
    content: dict[str, Any] = {
        "winner": None if winner is None else winner.arm,
        "arms": arms if state.plan.n_examples else {},
        "examples": test_order(state)[: state.plan.n_examples] if arms else [],
        "stop_reason": run.stop_reason,
    }
    state.learned = replace(
        state.learned,
        final_from=state.n_searched(),
        final_evaluations=len(set(content["arms"].values())) * len(content["examples"]),
    )
    return await _journal(run, "final", content)


async def _journal(run: JobRun, kind: str, content: dict[str, Any]) -> Step:
    state = run.state
    number = len(state.steps)
    fail_point("decided")
    await store.transact(
        run.deps.database.writes,
        lambda session: store.journal_decision(
            session,
            run.claim,
            step=number,
            kind=kind,
            decision=content,
            snapshot=None,
            new_trials=(),
            learned=state.learned.content(),
        ),
    )
    fail_point("journaled")
    step = Step(number, kind, content)
    state.steps.append(step)
    return step


def test_order(state: JobState) -> list[int]:
    """Return the test examples in an order that depends on the seed alone."""

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{state.spec.seed}:final:{number}".encode()).digest()

    return sorted(range(len(state.splits.test)), key=rank)


async def _empty_arm(run: JobRun) -> int:
    """Return the number of the empty instruction, storing it first if need be."""
    known = next((arm.n for arm in run.state.arms if arm.source == "empty"), None)
    if known is not None:
        return known
    row = await store.transact(
        run.deps.database.writes, lambda session: store.add_empty_arm(session, run.claim)
    )
    run.state.add_arm(row)
    return row.n


def _answers(state: JobState, split: str, arm: int | None) -> Answers:
    return {} if arm is None else state.answers.get((split, arm), {})


def build_result(
    state: JobState,
    row: JobRow,
    status: JobStatus,
    *,
    winner: int | None,
    stop_reason: str | None,
    reason: StatusReason | None,
    surrogate: Surrogate | None = None,
) -> Result:
    """Return the result document; everything in it is in the database."""
    by_source = {arm.source: arm.n for arm in reversed(state.arms)}
    baseline, empty = by_source.get("baseline"), by_source.get("empty")

    def measured_entry(arm: int | None) -> Any:
        if arm is None:
            return None
        return entry(
            state.arms[arm].text,
            trial=state.arms[arm].trial,
            validation=_answers(state, "validation", arm),
            test=_answers(state, "test", arm),
        )

    tried = [arm for arm in state.arms if state.answers.get(("validation", arm.n))]
    return Result(
        job_id=row.id,
        name=row.name,
        spec_hash=row.spec_hash,
        status=status,
        status_reason=reason,
        stop_reason=stop_reason,
        best=measured_entry(winner),
        baseline=measured_entry(baseline),
        empty=measured_entry(empty),
        comparison=_comparison(state, winner, baseline, empty),
        test_set=state.splits.test_set,
        usage=usage_of(row, has_price=state.connections.has_price),
        trials=len(tried),
        instructions=sum(arm.source != "empty" for arm in state.arms),
        seed=row.seed,
        reproducibility=_reproducibility(state),
        surrogate=surrogate,
        created_at=row.created_at,
    )


def surrogate_of(state: JobState, figures: Mapping[str, Any]) -> Surrogate | None:
    """Return what a strategy's `state` says of its model, arms by their texts."""
    if not figures:
        return None
    leaders = [
        {"instruction": state.arms[one["arm"]].text, "mean": one["mean"], "sd": one["sd"]}
        for one in figures["leaders"]
    ]
    return Surrogate.model_validate({"leaders": leaders, "slice": figures.get("slice")})


def _comparison(
    state: JobState, winner: int | None, baseline: int | None, empty: int | None
) -> Comparison | None:
    if winner is None:
        return None
    name: Literal["baseline", "empty"] = "empty" if baseline is None else "baseline"
    other = empty if baseline is None else baseline
    return compare(
        reference=name,
        is_same_text=winner == other,
        winner=_answers(state, "test", winner),
        other=_answers(state, "test", other),
        examples=state.splits.test,
    )


def _reproducibility(state: JobState) -> dict[str, JsonValue]:
    trials = [
        {
            "trial": arm.trial,
            "text": arm.text,
            "scores": [
                [number, answer.score]
                for number, answer in sorted(_answers(state, "validation", arm.n).items())
            ],
        }
        for arm in state.arms
        if arm.trial is not None
    ]
    return {
        "algo_version": ALGO_VERSION,
        "strategy": str(state.spec.strategy.name),
        "generator_fingerprint": state.fingerprint,
        "trials_sha256": digest(trials),
    }


def usage_of(row: JobRow, *, has_price: bool) -> Usage:
    """Return what the job cost so far; money in doubt is counted as spent."""
    return Usage(
        calls=row.calls,
        cached_calls=row.cached_calls,
        failed_calls=row.failed_calls,
        in_doubt_calls=row.in_doubt_calls,
        refused_answers=row.refused_answers,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        usd=round(row.usd + row.in_doubt_usd, 9) if has_price else None,
    )


async def finish(run: JobRun, status: JobStatus, *, reason: StatusReason | None = None) -> None:
    """End the job with its result document, in one fenced transaction."""
    state = run.state
    last = state.steps[-1] if state.steps else None
    if last is not None and last.kind == "final":
        winner = last.content["winner"]
        stop_reason = run.stop_reason or last.content["stop_reason"]
    else:
        found = await run.think(run.strategy.recommend)
        winner = None if found is None else found.arm
        stop_reason = run.stop_reason
    fail_point("measured")
    row = await run.ledger.refresh()
    result = build_result(
        state,
        row,
        status,
        winner=winner,
        stop_reason=stop_reason,
        reason=reason,
        surrogate=surrogate_of(state, await run.think(run.strategy.state)),
    )
    await store.transact(
        run.deps.database.writes,
        lambda session: store.move_job(
            session,
            run.claim,
            status,
            reason=reason,
            stop_reason=stop_reason,
            result=result.model_dump(mode="json"),
        ),
    )
    fail_point("finished")
    meters.LEFT.labels(status).inc()
    if result.best is not None and result.best.validation is not None:
        meters.BEST_SCORE.observe(result.best.validation.score)
