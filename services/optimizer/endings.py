"""Why a search is over, in one word for the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.optimizer.search.strategy import Room

if TYPE_CHECKING:
    from services.optimizer.job_run import JobRun


def exhausted(run: JobRun) -> str:
    """Name the budget that ended the search."""
    if run.permission.is_late():
        return "budget_seconds"
    budget, one = run.state.spec.budget, run.state.average_call()
    left = {
        "budget_calls": (budget.calls, run.ledger.spent.calls, one.calls),
        "budget_tokens": (budget.tokens, run.ledger.spent.tokens, one.tokens),
        "budget_usd": (budget.usd, run.ledger.spent.usd, one.usd),
    }
    shares = {
        name: (limit - spent) / max(each, 1e-12)
        for name, (limit, spent, each) in left.items()
        if limit is not None
    }
    return min(shares, key=lambda name: shares[name]) if shares else "search_complete"


def why_nothing(run: JobRun, room: Room) -> str:
    """Name why the strategy had nothing more to propose."""
    state, goal = run.state, run.state.spec.stop.score
    n = len(state.splits.validation)
    for arm in state.arms:
        answers = state.answers.get(("validation", arm.n), {})
        is_full = goal is not None and len(answers) == n
        if is_full and sum(a.score for a in answers.values()) / n >= (goal or 0.0):
            return "score_reached"
    if room.trials == 0:
        return "budget_trials"
    if room.calls is not None and room.calls < n:
        return exhausted(run)
    planned = state.problem().calls
    is_spent = planned is not None and state.decided_pairs() + n > planned
    return exhausted(run) if is_spent else "search_complete"
