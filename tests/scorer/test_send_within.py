"""What is not sent within the time that its caller gave is given back unsent."""

from __future__ import annotations

import httpx
import pytest

from tests.scorer.conftest import PoolMaker, collect, request_for, serve_scorer
from tests.scorer.fake_target import FakeTarget

pytestmark = pytest.mark.parametrize("make_pool", ["embedded"], indirect=True)


async def test_what_waits_for_too_long_is_not_sent(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    target.latency = 0.4
    pool = make_pool(limits={"in_flight": 1})
    lines, _ = await collect(pool, request_for(3, send_within_seconds=0.1))
    assert target.n_requests == 1
    answered = [line for line in lines.values() if line.error is None]
    late = [line.error for line in lines.values() if line.error is not None]
    assert len(answered) == 1
    assert {(error.code, error.retryable) for error in late} == {("not_sent_in_time", True)}
    assert sum(line.calls for line in lines.values()) == 1
    target.latency = 0.0
    lines, _ = await collect(pool, request_for(3, send_within_seconds=5.0))
    assert all(line.score == 1.0 for line in lines.values())
    assert target.n_requests == 3


async def test_nothing_is_sent_when_the_time_is_over(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    lines, _ = await collect(make_pool(), request_for(3, send_within_seconds=0.0))
    assert target.n_requests == 0
    assert all(line.error is not None and line.calls == 0 for line in lines.values())


async def test_it_is_understood_over_http(make_pool: PoolMaker, target: FakeTarget) -> None:
    content = request_for(2, send_within_seconds=0.0).model_dump(mode="json")
    async with serve_scorer(make_pool()) as url, httpx.AsyncClient() as client:
        response = await client.post(f"{url}/v1/scores", json=content)
    assert response.text.count("not_sent_in_time") == 2
    assert target.n_requests == 0
