from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from aiohttp import web

from instructzero.contracts import MetricSpec, ScoreExample, ScoreLine
from instructzero.errors import InvalidRequest, UnknownTarget
from services.scorer.cache import MemoryCache
from tests.scorer.conftest import FAST, PoolMaker, collect, request_for, until
from tests.scorer.fake_target import FakeTarget, Seen, answer, completion, error

pytestmark = pytest.mark.parametrize("make_pool", ["embedded", "over_http"], indirect=True)


async def test_each_example_gets_one_line_with_its_score_and_cost(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    lines, conditions = await collect(make_pool(), request_for(20))
    assert len(lines) == 20
    assert conditions == []
    line = lines["3"]
    assert (line.answer, line.score, line.calls, line.cached) == ("word 3", 1.0, 1, False)
    assert line.usage.prompt_tokens == 10
    assert line.usd == pytest.approx((10 * 1.0 + 2 * 2.0) / 1e6)
    assert target.n_requests == 20


async def test_the_rendered_template_is_one_user_message(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    await collect(make_pool(sampling={"max_tokens": 7, "temperature": 0}), request_for(1))
    body = target.seen[0].body
    assert body["messages"] == [
        {"role": "user", "content": "Instruction: Repeat.\n\nInput: word 0\nOutput:"}
    ]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("fake", 7, 0)


async def test_nothing_but_the_listed_headers_leaves(
    make_pool: PoolMaker, target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ambient-key")
    monkeypatch.setenv("OPENAI_ORG_ID", "ambient-org")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: ambient")
    await collect(make_pool(), request_for(1))
    sent = {name.lower(): value for name, value in target.seen[0].headers.items()}
    assert "authorization" not in sent
    assert not [value for value in sent.values() if "ambient" in value]
    assert not [name for name in sent if name.startswith("x-stainless")]


async def test_an_answer_is_bought_once_for_all_jobs_of_a_tenant(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    pool = make_pool()
    await collect(pool, request_for(5))
    lines, _ = await collect(pool, request_for(5, job_id="other"))
    assert target.n_requests == 5
    assert all(line.cached and line.calls == 0 and line.score == 1 for line in lines.values())
    assert lines["0"].usage.prompt_tokens == 0
    await collect(pool, request_for(5, tenant="another"))
    assert target.n_requests == 10


async def test_two_jobs_that_need_an_answer_at_the_same_time_pay_once(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    target.latency = 0.05
    pool = make_pool()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(collect(pool, request_for(10, job_id="a")))
        second = group.create_task(collect(pool, request_for(10, job_id="b")))
    assert target.n_requests == 10
    lines = [*first.result()[0].values(), *second.result()[0].values()]
    assert sum(line.cached for line in lines) == 10


async def test_a_job_that_bypasses_the_cache_still_never_buys_the_same_answer_twice(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    pool = make_pool()
    await collect(pool, request_for(3))
    await collect(pool, request_for(3, job_id="fresh", cache=False))
    assert target.n_requests == 6
    await collect(pool, request_for(3, job_id="fresh", cache=False))
    assert target.n_requests == 6


async def test_repeats_ask_so_many_times_and_average(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    async def every_other(seen: Seen, _: web.Request) -> web.Response:
        return completion("word 0" if seen.number % 2 else "wrong")

    target.respond = every_other
    lines, _ = await collect(make_pool(), request_for(1, repeats=4))
    assert lines["0"].score == 0.5
    assert lines["0"].calls == 4
    assert lines["0"].usage.completion_tokens == 8


async def test_the_answer_is_in_the_cache_before_its_line_comes(make_pool: PoolMaker) -> None:
    class Recording(MemoryCache):
        n_put = 0

        async def put(self, key: str, answer: object) -> None:
            await asyncio.sleep(0.01)
            self.n_put += 1

    cache = Recording(ttl_seconds=60, max_entries=10)
    n_lines = 0
    async for line in make_pool(cache=cache).score(request_for(4)):
        n_lines += isinstance(line, ScoreLine)
        assert cache.n_put >= n_lines


@pytest.mark.parametrize("n_calls", [0, 1, 7, 50])
async def test_no_more_requests_are_sent_than_the_pool_has_calls(
    make_pool: PoolMaker, target: FakeTarget, n_calls: int
) -> None:
    async def flaky(seen: Seen, request: web.Request) -> web.StreamResponse:
        if seen.number % 3 == 1:
            return error(500)
        return await answer(seen, request)

    target.respond = flaky
    lines, _ = await collect(make_pool(), request_for(60, calls=n_calls))
    assert target.n_requests <= n_calls
    assert sum(line.calls for line in lines.values()) == target.n_requests
    exhausted = [line.error for line in lines.values() if line.score is None]
    assert exhausted
    assert {e.code for e in exhausted if e} == {"budget_exhausted"}
    assert all(e.retryable and not e.stops_job for e in exhausted if e)


async def test_closing_the_stream_cancels_what_is_in_flight_and_frees_its_slots(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    target.latency = 30.0
    pool = make_pool(limits={"in_flight": 2})
    async with aclosing(pool.score(request_for(6))) as lines:
        coming = asyncio.ensure_future(anext(lines))
        await until(lambda: target.n_requests == 2)
        coming.cancel()
        await asyncio.wait({coming})
    target.latency = 0.0
    async with asyncio.timeout(5):
        done, _ = await collect(pool, request_for(6, job_id="next"))
    assert all(line.score == 1 for line in done.values())


async def test_calls_in_flight_never_exceed_the_limit(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    target.latency = 0.01
    pool = make_pool(limits={"in_flight": 3})
    async with asyncio.TaskGroup() as group:
        for job in "abc":
            group.create_task(collect(pool, request_for(10, job_id=job, tenant=job)))
    assert target.n_requests == 30
    assert target.most_in_flight == 3


async def test_a_terminal_answer_stops_the_rest_of_the_request(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    async def refuse(_: Seen, __: web.Request) -> web.Response:
        return error(401, "invalid_api_key")

    target.respond = refuse
    lines, _ = await collect(make_pool(limits={"in_flight": 4}), request_for(40))
    assert target.n_requests <= 4
    assert all(line.error and line.error.stops_job for line in lines.values())
    assert sum(line.calls for line in lines.values()) == target.n_requests
    assert all(line.score is None for line in lines.values())


async def test_a_wait_for_the_rate_limit_is_told_once_and_its_end_too(
    make_pool: PoolMaker,
) -> None:
    pool = make_pool(limits={"requests_per_minute": 120, "burst": 1})  # all wait well over 0.1 s
    lines, conditions = await collect(pool, request_for(5))
    assert len(lines) == 5
    assert conditions == ["rate_limited", None]


async def test_expected_outputs_that_no_answer_can_meet_are_refused_before_a_call(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    example = ScoreExample(id="a", input="x", outputs=("[",))
    request = request_for(examples=(example,), metric=MetricSpec(name="regex"))
    with pytest.raises(InvalidRequest, match="examples/0/outputs"):
        await collect(make_pool(), request)
    with pytest.raises(UnknownTarget, match="fake"):
        await collect(make_pool(), request_for(1, target="nowhere"))
    assert target.n_requests == 0


async def test_a_target_that_is_down_is_given_up_after_a_while(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    settings = FAST.model_copy(update={"patience_seconds": 0.3, "breaker_failures": 4})

    async def broken(_: Seen, __: web.Request) -> web.Response:
        return error(503)

    target.respond = broken
    async with asyncio.timeout(20):
        lines, conditions = await collect(make_pool(settings), request_for(30))
    assert all(line.error and line.error.retryable for line in lines.values())
    assert "target_unavailable" in conditions
    assert target.n_requests < 45, "an open breaker holds calls back"


async def test_a_target_that_comes_back_is_used_again(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    settings = FAST.model_copy(update={"breaker_failures": 3})

    async def down_at_first(seen: Seen, request: web.Request) -> web.StreamResponse:
        return error(503) if seen.number < 6 else await answer(seen, request)

    target.respond = down_at_first
    async with asyncio.timeout(20):
        lines, _ = await collect(make_pool(settings, limits={"in_flight": 2}), request_for(10))
    assert all(line.score == 1 for line in lines.values())


async def test_a_connection_that_was_never_made_costs_no_call(make_pool: PoolMaker) -> None:
    settings = FAST.model_copy(update={"patience_seconds": 0.2})
    pool = make_pool(settings, base_url="http://127.0.0.1:9/v1")
    lines, _ = await collect(pool, request_for(3, calls=2))
    assert all(line.calls == 0 and line.error and line.error.retryable for line in lines.values())
    failure = await pool.probe("fake")
    assert failure is not None
    assert failure.code == "target_unreachable"


async def test_probe_and_targets_spend_nothing(make_pool: PoolMaker, target: FakeTarget) -> None:
    pool = make_pool()
    assert await pool.probe("fake") is None
    assert [view.name for view in await pool.targets()] == ["fake"]
    assert target.n_requests == 0


async def test_who_waits_while_another_is_refused_for_good_sends_nothing(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    async def refuse(seen: Seen, _: web.Request) -> web.StreamResponse:
        return error(401, code="invalid_api_key") if seen.number == 0 else await answer(seen, _)

    target.respond, target.latency = refuse, 0.1
    pool = make_pool(limits={"in_flight": 1})
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(collect(pool, request_for(2, job_id=job, tenant=job))) for job in "ab"
        ]
    lines = [line for task in tasks for line in task.result()[0].values()]
    assert target.n_requests == 1
    assert all(line.error is not None and line.error.stops_job for line in lines)
    assert sorted(line.calls for line in lines) == [0, 0, 0, 1]
    lines_later, _ = await collect(pool, request_for(1))
    assert lines_later["0"].score == 1.0, "a key that was mended is tried again"
