"""The Lua scripts and their Python twin decide alike, and both keep the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.scorer.limiter_state import MAX_JOBS, Ask, Feedback, Pace, ScopeState
from services.scorer.rate_limit import LocalGate, Permit
from services.scorer.redis_gate import RedisGate
from services.scorer.redis_link import open_redis
from tests.scorer.redis_server import RedisServer

START = 1_764_000_000_000_000.0
"""Microseconds of an epoch: more digits than Lua's tostring() keeps."""
JOBS = ["a", "b", "c"]


@dataclass
class Both:
    """The same history put to both gates on one clock."""

    redis: RedisGate
    runner: asyncio.Runner
    server: RedisServer
    now: float = START
    local: LocalGate = field(init=False)

    def reset(self) -> None:
        self.server.flush()
        self.now = START
        self.local = LocalGate(lambda: self.now)

    def acquire(self, ask: Ask, pace: Pace) -> Any:
        ours = self.runner.run(self.local.acquire("s", ask, pace))
        theirs = self.runner.run(self.redis.acquire("s", ask, pace))
        assert ours == theirs
        return ours

    def settle(self, permit: Permit, feedback: Feedback) -> None:
        said: list[tuple[str, str | None]] = []
        for gate in (self.local, self.redis):
            gate.on_release(lambda scope, job: said.append((scope, job)))
            self.runner.run(gate.settle(permit, feedback))
        assert len(said) in {0, 2}
        assert said[:1] == said[1:]


@pytest.fixture(scope="module")
def both(shared_redis: RedisServer) -> Iterator[Both]:
    with asyncio.Runner() as runner:
        redis = open_redis(shared_redis.url)
        pair = Both(RedisGate(redis, clock=lambda: pair.now), runner, shared_redis)
        yield pair
        runner.run(pair.redis.aclose())


PACES = st.builds(
    Pace,
    request_us=st.sampled_from([0.0, 100_000.0, 1_000_000.0, 60e6 / 7]),
    burst_requests=st.sampled_from([1.0, 2.0, 10.0]),
    token_us=st.sampled_from([0.0, 60e6 / 90_000, 1_000.0 / 3]),
    burst_tokens=st.sampled_from([500.0, 9_000.0]),
    in_flight=st.integers(1, 4),
    lease_us=st.sampled_from([2e6, 35e6]),
)
ASKS = st.tuples(
    st.just("ask"),
    st.sampled_from(JOBS),
    st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    st.integers(1, 400),
    st.booleans(),
)
SETTLES = st.tuples(
    st.just("settle"),
    st.integers(0, 5),
    st.builds(
        Feedback,
        token_difference=st.sampled_from([0.0, -100.0, 250.0]),
        remaining_requests=st.sampled_from([-1.0, -1.0, 0.0, 1.0, 50.0]),
        remaining_tokens=st.sampled_from([-1.0, -1.0, 0.0, 100.0]),
        retry_after_us=st.sampled_from([0.0, 0.0, 700_000.0, 3e6]),
        is_too_fast=st.booleans(),
    ),
)
PASSES = st.tuples(st.just("pass"), st.sampled_from([0, 1, 5_000, 99_999, 100_000, 2_000_000, 7e7]))
BACK = st.tuples(st.just("pass"), st.just(-3_000_000))
LEAVES = st.tuples(st.just("leave"), st.sampled_from(JOBS))
HISTORIES = st.lists(
    st.one_of(ASKS, ASKS, ASKS, SETTLES, SETTLES, PASSES, PASSES, LEAVES, BACK),
    min_size=5,
    max_size=40,
)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pace=PACES, history=HISTORIES)
def test_script_and_twin_agree_on_every_history(both: Both, pace: Pace, history: list[Any]) -> None:
    replay(both, pace, history)


@pytest.mark.slow
@settings(
    max_examples=4_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pace=PACES, history=HISTORIES)
def test_script_and_twin_agree_on_thousands_of_histories(
    both: Both, pace: Pace, history: list[Any]
) -> None:
    replay(both, pace, history)


def replay(both: Both, pace: Pace, history: list[Any]) -> None:
    both.reset()
    held: list[Permit] = []
    for number, (kind, *what) in enumerate(history):
        if kind == "pass":
            both.now = max(START, both.now + what[0])
        elif kind == "ask":
            job, weight, tokens, is_followed = what
            ask = Ask(f"t{number}", job, weight, float(tokens), is_followed)
            if both.acquire(ask, pace).is_granted:
                held.append(Permit("s", ask.ticket, ask.tokens, pace))
        elif kind == "settle" and held:
            number, feedback = what
            both.settle(held[number % len(held)], feedback)  # sometimes the same one again
        elif kind == "leave":
            both.runner.run(both.local.leave("s", what[0]))
            both.runner.run(both.redis.leave("s", what[0]))


def test_the_wait_is_exact(both: Both) -> None:
    both.reset()
    pace = Pace(100_000.0, 1.0, 0.0, 1e9, 100, 1e6)
    assert both.acquire(Ask("1", "a", 1.0, 1.0), pace).is_granted
    denied = both.acquire(Ask("2", "a", 1.0, 1.0), pace)
    assert (denied.wait_us, denied.why) == (100_000.0, "requests")
    both.now += denied.wait_us - 1
    assert not both.acquire(Ask("2", "a", 1.0, 1.0), pace).is_granted
    both.now += 1
    assert both.acquire(Ask("2", "a", 1.0, 1.0), pace).is_granted


def test_the_slot_of_a_crashed_holder_comes_back_with_its_lease(both: Both) -> None:
    both.reset()
    pace = Pace(0.0, 1.0, 0.0, 1e9, 2, 5e6)
    for ticket in "12":
        assert both.acquire(Ask(ticket, "a", 1.0, 1.0), pace).is_granted
    assert both.acquire(Ask("3", "a", 1.0, 1.0), pace).why == "concurrency"
    both.now += 5e6
    assert both.acquire(Ask("3", "a", 1.0, 1.0), pace).is_granted


def test_virtual_times_of_many_jobs_do_not_pile_up(both: Both) -> None:
    both.reset()
    pace = Pace(0.0, 1.0, 0.0, 1e9, 10_000, 5e6)
    for number in range(MAX_JOBS + 200):
        assert both.acquire(Ask(f"t{number}", f"job-{number}", 1.0, 1.0), pace).is_granted
        both.now += 10
    for number in range(MAX_JOBS + 200):
        assert both.acquire(Ask(f"u{number}", "job-7", 1.0, 1.0), pace).is_granted
    kept = both.server.client().zcard("iz:{s}:virtual")
    assert kept <= MAX_JOBS + 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    per_second=st.floats(0.5, 200),
    burst=st.integers(1, 20),
    steps=st.lists(st.integers(0, 400_000), min_size=20, max_size=200),
)
def test_permits_never_exceed_burst_plus_rate_times_time(
    per_second: float, burst: int, steps: list[int]
) -> None:
    state, now = ScopeState(), START
    pace = Pace(1e6 / per_second, float(burst), 0.0, 1e9, 10_000, 1e6)
    granted: list[float] = []
    for number, step in enumerate(steps):
        now += step
        if state.acquire(Ask(str(number), "a", 1.0, 1.0), pace, now).is_granted:
            granted.append(now)
    for first, begun in enumerate(granted):
        for last in range(first, len(granted)):
            most = burst + per_second * (granted[last] - begun) / 1e6
            assert last - first + 1 <= most + 1e-6


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=6),
    in_flight=st.sampled_from([1, 3, 1000]),
)
def test_every_waiting_job_is_served_in_turn_and_by_weight(
    weights: list[float], in_flight: int
) -> None:
    """Backlogged jobs: shares follow weights, and nobody waits more rounds than its share says."""
    state, now = ScopeState(), START
    pace = Pace(100_000.0, 1.0, 0.0, 1e9, in_flight, 1e9)
    served = [0] * len(weights)
    last_served = [0] * len(weights)
    wake = [now] * len(weights)
    n_rounds = 600
    for number in range(n_rounds):
        while True:
            job = min(range(len(weights)), key=lambda j: wake[j])
            now = max(now, wake[job])
            ask = Ask(f"t{number}-{job}", f"job{job}", weights[job], 1.0, is_followed=True)
            decision = state.acquire(ask, pace, now)
            if decision.is_granted:
                break
            wake[job] = now + decision.wait_us
        wake[job] = now + 1
        served[job] += 1
        fair = sum(weights) / weights[job]
        assert number - last_served[job] <= 3 * fair + 2 * len(weights) + 3
        last_served[job] = number
        state.settle(ask.ticket, pace, Feedback(), now)
    for weight, n in zip(weights, served, strict=True):
        assert n / n_rounds == pytest.approx(weight / sum(weights), rel=0.1, abs=0.01)
