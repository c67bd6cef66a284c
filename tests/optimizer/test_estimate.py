"""Estimates: within the budget, and honest about what they do not know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructzero.contracts import TargetView
from services.optimizer.estimate import estimate_job
from services.optimizer.jobs import Connections
from tests.optimizer.worlds import make_spec


def target(**changes: Any) -> Connections:
    """Return a connection to a target with a price."""
    fields: dict[str, Any] = {
        "name": "world",
        "model": "m",
        "limits": {"in_flight": 8},
        "price": {"input_per_million": 1.0, "output_per_million": 2.0},
        "max_tokens": 16,
    }
    return Connections(TargetView.model_validate(fields | changes))


BUDGETS = st.fixed_dictionaries(
    {},
    optional={
        "calls": st.integers(1, 100_000),
        "trials": st.integers(1, 1000),
        "tokens": st.integers(1000, 10**9),
        "usd": st.floats(0.001, 1000),
        "seconds": st.floats(1, 10_000),
    },
).filter(bool)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(budget=BUDGETS, repeats=st.integers(1, 5), price=st.booleans())
def test_an_estimate_stays_within_the_budget(
    budget: dict[str, Any], repeats: int, price: bool
) -> None:
    spec = make_spec(budget=budget, repeats=repeats)
    estimate = estimate_job(spec, target() if price else target(price=None))
    assert estimate.calls >= 0
    assert estimate.calls <= budget.get("calls", float("inf"))
    assert estimate.prompt_tokens + estimate.completion_tokens <= budget.get("tokens", 1e18) * 1.01
    assert estimate.final_check_calls <= max(estimate.calls, 300 * repeats)
    if price:
        assert estimate.usd is not None
        assert estimate.usd <= budget.get("usd", float("inf")) + 1e-6
        if estimate.usd_at_most is not None:
            assert estimate.usd <= estimate.usd_at_most + 1e-6
    else:
        assert (estimate.usd, estimate.usd_interval, estimate.usd_at_most) == (None, None, None)
    tokens = estimate.prompt_tokens + estimate.completion_tokens
    for amount, interval, most in (
        (estimate.calls, estimate.calls_interval, estimate.calls_at_most),
        (tokens, estimate.tokens_interval, budget.get("tokens")),
        (estimate.usd, estimate.usd_interval, estimate.usd_at_most),
        (estimate.seconds, estimate.seconds_interval, budget.get("seconds")),
    ):
        if amount is not None and interval is not None:
            assert interval[0] <= amount <= interval[1]
            assert most is None or interval[1] <= most


def test_a_number_worked_by_hand() -> None:
    spec = make_spec(budget={"calls": 100}, template="{instruction}{input}")
    estimate = estimate_job(spec, target(limits={"requests_per_minute": 50}))
    # prompt: 20 bytes of template, 80 of instruction, 2.77 of input, at four bytes a token
    assert estimate.prompt_tokens + estimate.completion_tokens == 100 * 34
    assert estimate.completion_tokens == 100 * 8
    assert estimate.usd == pytest.approx(100 * (25.69 * 1 + 8 * 2) / 1e6, rel=1e-3)
    assert estimate.seconds == 120.0
    assert (estimate.calls_at_most, estimate.final_check_calls) == (100, 20)


def test_an_interval_worked_by_hand() -> None:
    spec = make_spec(budget={"calls": 100}, template="{instruction}{input}", strategy="default")
    spec = spec.model_copy(update={"task": spec.task.model_copy(update={"baseline": None})})
    estimate = estimate_job(spec, target(limits={"in_flight": 10}))
    assert estimate.calls_interval == (100, 100)
    assert estimate.tokens_interval is not None
    assert estimate.seconds_interval is not None
    low, high = estimate.tokens_interval
    # short: (20 + 20 + 2.77) bytes / 5, an answer of 1; long: (20 + 256 + 2.77) / 2.5 + 20, 16
    assert low == pytest.approx(100 * 10, rel=0.03)
    assert high == pytest.approx(100 * 148, rel=0.03)
    assert estimate.seconds == 10.0
    assert estimate.seconds_interval == pytest.approx((2.0, 50.0), rel=0.1)


def test_trials_alone_are_not_all_tried_on_every_example_by_a_race() -> None:
    task = make_spec().task.model_dump(mode="json")
    many = task | {"validation": [{"input": f"v{n}", "output": "b"} for n in range(50)]}
    race = estimate_job(make_spec(task=many, budget={"trials": 10}, strategy="default"), target())
    whole = estimate_job(make_spec(task=many, budget={"trials": 10}, strategy="random"), target())
    assert race.calls - race.final_check_calls == 200
    assert whole.calls - whole.final_check_calls == 500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": {"calls": 7}}, "verdict needs 20"),
        ({"budget": {"calls": 7}}, "leaves 7 calls for the search"),
        ({"budget": {"seconds": 60}}, "Only time bounds"),
        ({"repeats": 3}, "takes 3 calls"),
        ({"stop": {"score": 1.0}}, "ends earlier"),
    ],
)
def test_notes_say_what_to_expect(changes: dict[str, Any], words: str) -> None:
    notes = " ".join(estimate_job(make_spec(**changes), target()).notes)
    assert words in notes


def test_notes_say_where_the_fresh_examples_come_from() -> None:
    task = make_spec().task.model_dump(mode="json", exclude={"test"})
    held = estimate_job(make_spec(task=task), target())
    assert "4 of 12 validation examples are set aside" in " ".join(held.notes)
    few = estimate_job(make_spec(task=task | {"validation": task["validation"][:5]}), target())
    assert "no verdict" in " ".join(few.notes)
    assert few.final_check_calls == 0
