"""Every fault of a target over the real protocol: what is said, what was paid, no score of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from instructzero.contracts import ScoreLine
from tests.scorer.conftest import FAST, PoolMaker, collect, request_for
from tests.scorer.fake_target import FakeTarget, Seen, answer, completion, error, serve_fake
from tests.scorer.faults import FAULTS, Fault, at_first
from tests.scorer.jobs import open_jobs

CANARY = "sk-canary-0123456789"
PATIENT = FAST.model_copy(update={"max_attempts": 2, "breaker_failures": 1_000})
LASTING = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
PASSING = pytest.mark.parametrize(
    "fault",
    [fault for fault in FAULTS.values() if fault.passes],
    ids=[name for name, fault in FAULTS.items() if fault.passes],
)


def spent(lines: dict[str, ScoreLine]) -> tuple[int, int]:
    """Return calls and failed calls of all lines."""
    return (
        sum(line.calls for line in lines.values()),
        sum(line.failed_calls for line in lines.values()),
    )


@LASTING
async def test_a_fault_that_lasts_is_named_counted_and_never_a_score(
    make_pool: PoolMaker, target: FakeTarget, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KEY", CANARY)
    target.respond = fault.respond
    pool = make_pool(PATIENT, limits={"in_flight": 2}, api_key={"env": "FAKE_KEY"}, **fault.config)
    async with asyncio.timeout(30):  # nothing hangs
        lines, _ = await collect(pool, request_for(4))
    errors = [line.error for line in lines.values() if line.error]
    assert len(errors) == 4
    assert all(line.score is None and line.answer is None for line in lines.values())
    assert {e.code for e in errors} == {fault.code}
    assert {e.stops_job for e in errors} == {fault.effect == "stops_job"}
    assert {e.retryable for e in errors} == {fault.passes}
    assert spent(lines) == (target.n_requests, target.n_requests)
    expected = {"stops_job": (1, 2), "stops_example": (4, 4)}.get(fault.effect, (8, 8))
    assert expected[0] <= target.n_requests <= expected[1]
    assert all(line.usage.prompt_tokens == 0 and line.usd == 0 for line in lines.values())
    assert CANARY not in repr(lines)


@PASSING
async def test_a_fault_that_passes_costs_its_calls_and_no_example(
    make_pool: PoolMaker, target: FakeTarget, fault: Fault
) -> None:
    target.respond = at_first(fault, 2, answer)
    settings = PATIENT.model_copy(
        update={"max_attempts": 3, "condition_after_seconds": 0.0005, "backoff_base_seconds": 0.02}
    )
    pool = make_pool(settings, limits={"in_flight": 1}, **fault.config)
    async with asyncio.timeout(30):
        lines, conditions = await collect(pool, request_for(3))
    assert all(line.score == 1 for line in lines.values())
    assert spent(lines) == (5, 2)
    assert target.n_requests == 5
    assert fault.condition in conditions
    assert conditions[-1] is None


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("429 with seconds", 0.95), ("429 with milliseconds", 0.65), ("503 with a hint", 0.95)],
)
async def test_the_wait_that_a_target_asks_for_is_kept(
    make_pool: PoolMaker, target: FakeTarget, name: str, seconds: float
) -> None:
    target.respond = at_first(FAULTS[name], 1, answer)
    n_examples = 1 if name.startswith("503") else 3  # a 429 is everybody's
    await collect(make_pool(limits={"in_flight": 1}), request_for(n_examples))
    assert target.seen[1].at - target.seen[0].at >= seconds
    assert target.seen[-1].at - target.seen[0].at < seconds + 2


async def test_a_date_in_the_past_or_nonsense_is_no_wait(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    hints = ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-5", "nan", "1e400"]

    async def respond(seen: Seen, request: web.Request) -> web.StreamResponse:
        if seen.number < len(hints):
            return error(429, headers={"retry-after": hints[seen.number]})
        return await answer(seen, request)

    target.respond = respond
    settings = FAST.model_copy(update={"max_attempts": 10})
    async with asyncio.timeout(10):
        lines, _ = await collect(make_pool(settings), request_for(1))
    assert (lines["0"].score, lines["0"].failed_calls) == (1.0, len(hints))


async def test_a_storm_of_503_is_met_with_probes_not_with_calls(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    settings = FAST.model_copy(update={"breaker_failures": 5, "patience_seconds": 10})
    begun = time.time()

    async def storm(seen: Seen, request: web.Request) -> web.StreamResponse:
        return error(503) if seen.at - begun < 1.0 else await answer(seen, request)

    target.respond = storm
    async with asyncio.timeout(30):
        lines, conditions = await collect(make_pool(settings), request_for(200))
    assert all(line.score == 1 for line in lines.values())
    calls, failed = spent(lines)
    assert calls == target.n_requests
    assert failed == calls - 200 < 60
    assert "target_unavailable" in conditions


async def test_a_refused_connection_costs_nothing_and_the_condition_is_shown(
    make_pool: PoolMaker,
) -> None:
    settings = FAST.model_copy(update={"patience_seconds": 0.5, "condition_after_seconds": 0.01})
    async with asyncio.timeout(20):
        lines, conditions = await collect(
            make_pool(settings, base_url="http://127.0.0.1:9/v1"), request_for(20)
        )
    errors = {line.error.code for line in lines.values() if line.error and line.error.retryable}
    assert errors <= {"target_unreachable", "target_unavailable"}
    assert spent(lines) == (0, 0)
    assert "target_unavailable" in conditions


FILTERED = {
    "finish reason": lambda: completion(None, finish="content_filter"),
    "refusal": lambda: completion(None, refusal="I can't help with that."),
    "an error of the filter": lambda: error(400, "content_filter"),
}


@pytest.mark.parametrize("name", FILTERED)
async def test_a_content_filter_scores_0_and_is_counted_apart(
    make_pool: PoolMaker, target: FakeTarget, name: str
) -> None:
    async def respond(seen: Seen, request: web.Request) -> web.StreamResponse:
        return FILTERED[name]() if "word 1" in seen.text else await answer(seen, request)

    target.respond = respond
    lines, _ = await collect(make_pool(), request_for(3))
    assert [lines[i].score for i in "012"] == [1, 0, 1]
    assert [lines[i].refused for i in "012"] == [False, True, False]
    assert spent(lines) == (3, 0)
    assert lines["1"].error is None


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        {},
        {"prompt_tokens": -5, "completion_tokens": -1},
        {"prompt_tokens": 10**15, "completion_tokens": 10**15},
        {"prompt_tokens": 1.5, "completion_tokens": "7"},
        {"prompt_tokens": True, "completion_tokens": None},
        {"prompt_tokens": 0, "completion_tokens": 0},
    ],
    ids=str,
)
async def test_wrong_usage_numbers_are_replaced_by_an_estimate(
    make_pool: PoolMaker, target: FakeTarget, usage: Any
) -> None:
    async def respond(_: Seen, __: web.Request) -> web.Response:
        content = {"choices": [{"message": {"content": "word 0"}}], "usage": usage}
        return web.json_response(content)

    target.respond = respond
    lines, _ = await collect(make_pool(limits={"tokens_per_minute": 60_000}), request_for(1))
    line = lines["0"]
    assert line.score == 1
    assert 1 <= line.usage.prompt_tokens <= 200
    assert 0 <= line.usage.completion_tokens <= 256
    assert line.usd is not None
    assert 0 < line.usd < 0.01


async def test_an_answer_that_no_database_can_keep_is_cleaned(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    async def respond(_: Seen, __: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "a\ud800b\x00c"}}]})

    target.respond = respond
    lines, _ = await collect(make_pool(), request_for(1))
    assert lines["0"].answer == "a�b�c"
    assert lines["0"].model_dump_json().encode()


async def test_a_redirect_is_not_followed_and_the_key_goes_nowhere(
    make_pool: PoolMaker, target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KEY", CANARY)
    async with serve_fake(FakeTarget()) as other:

        async def redirect(_: Seen, __: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"{other.base_url}/chat/completions")

        target.respond = redirect
        await collect(make_pool(api_key={"env": "FAKE_KEY"}), request_for(2))
        assert other.n_requests == 0
    assert target.seen[0].headers["Authorization"] == f"Bearer {CANARY}"


# --- what the job says --------------------------------------------------------------------------


@LASTING
async def test_the_job_says_what_is_wrong_and_what_was_paid(
    make_pool: PoolMaker, target: FakeTarget, sqlite_url: str, fault: Fault
) -> None:
    """What ends a job ends it with the code; what passes costs its calls and leaves a result."""
    n_faults = 3 if fault.passes else 10**9
    target.respond = at_first(fault, n_faults, answer)
    settings = PATIENT.model_copy(update={"max_attempts": 3, "condition_after_seconds": 0.001})
    pool = make_pool(settings, limits={"in_flight": 4}, **fault.config)
    async with open_jobs(sqlite_url, pool) as jobs, asyncio.timeout(60):
        row = await jobs.run()
        evaluations, shown = await jobs.evaluations(), await jobs.conditions()
    assert row.calls == target.n_requests <= 24
    assert row.failed_calls == min(n_faults, target.n_requests)
    assert row.reserved_calls == row.in_doubt_calls == 0
    if fault.passes:
        assert (row.status, row.conditions) == ("succeeded", [])
        assert fault.condition in shown
        assert all(found.score is not None for found in evaluations)
        return
    assert row.status == "failed"
    assert row.status_reason is not None
    expected = "examples_refused" if fault.effect == "stops_example" else fault.code
    assert row.status_reason["code"] == expected
    assert all(found.score is None for found in evaluations)
    assert row.calls <= (4 if fault.effect == "stops_job" else 24)


async def test_a_job_waits_for_a_target_that_is_not_there_yet(
    make_pool: PoolMaker, sqlite_url: str
) -> None:
    """Refused connections cost nothing; the job says why it waits and goes on by itself."""
    late = FakeTarget()
    async with serve_fake(late):
        port = late.base_url
    settings = FAST.model_copy(update={"condition_after_seconds": 0.01, "patience_seconds": 30})
    pool = make_pool(settings, base_url=port, limits={"in_flight": 4})
    async with open_jobs(sqlite_url, pool) as jobs, asyncio.timeout(90):
        running = asyncio.create_task(jobs.run())
        while "target_unavailable" not in (await jobs.conditions()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert (await jobs.row()).calls == 0
        async with serve_fake(late, port=int(port.split(":")[2].split("/")[0])):
            row = await running
        assert (row.status, row.failed_calls, row.conditions) == ("succeeded", 0, [])
        assert row.calls == late.n_requests
