"""Many scorers, one Redis, one target: what is lost, what is paid, and what is kept."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from instructzero.contracts import ScoreLine
from instructzero.errors import ScorerUnavailable
from services.optimizer.clients import HttpScorer
from tests.scorer.cluster import (
    Caller,
    ScorerProcess,
    free_port,
    job_requests,
    most_above,
    scorers,
    start_all,
)
from tests.scorer.conftest import request_for, until
from tests.scorer.fake_target import FakeTarget, serve_fake
from tests.scorer.redis_server import RedisServer

TIMEOUT_SECONDS = 5.0
LEASE_SECONDS = TIMEOUT_SECONDS + 5
LIMITS: dict[str, dict[str, float]] = {
    "kill": {"in_flight": 16},
    "slots": {"in_flight": 2},
    "flushed": {"requests_per_minute": 1_800, "burst": 20, "in_flight": 64},
    "restarted": {"requests_per_minute": 1_800, "burst": 20, "in_flight": 64},
    "paused": {"requests_per_minute": 1_800, "burst": 20, "in_flight": 64},
    "shared": {"requests_per_minute": 1_800, "burst": 3, "in_flight": 64},
    "once": {"in_flight": 8},
    "stop": {"in_flight": 4},
}
JITTER_SECONDS = 1.0
"""How much later than another a permitted request may reach the target on a busy machine.

A limit that every scorer kept for itself would be exceeded by far more within seconds. What an idle
machine keeps to is measured by benchmarks/limiter.py.
"""
PORTS = {name: free_port() for name in LIMITS}


class Cluster(NamedTuple):
    """Four scorers on one Redis."""

    scorers: list[ScorerProcess]
    redis: RedisServer

    @property
    def urls(self) -> list[str]:
        return [scorer.url for scorer in self.scorers]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    redis = RedisServer(folder)
    redis.start()
    targets = {
        name: {
            "base_url": f"http://127.0.0.1:{PORTS[name]}/v1",
            "model": "fake",
            "limits": limits,
            "timeout_seconds": TIMEOUT_SECONDS,
        }
        for name, limits in LIMITS.items()
    }
    with scorers(folder, 4, targets, redis.url, condition_after_seconds=0.2) as made:
        yield Cluster(made, redis)
    redis.stop()


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """The cluster with every scorer up, whatever the test before has done to it."""
    start_all(running.scorers)
    return running


@asynccontextmanager
async def serving(name: str) -> AsyncIterator[FakeTarget]:
    """Serve the target that the scorers know by this name."""
    async with serve_fake(FakeTarget(), port=PORTS[name]) as target:
        yield target


async def test_a_killed_scorer_loses_no_answer_and_repeats_only_what_was_in_flight(
    cluster: Cluster,
) -> None:
    async with serving("kill") as target:
        target.latency = 0.05
        caller = Caller(cluster.urls)
        requests = [
            *job_requests("a", 200, target="kill"),
            *job_requests("b", 200, target="kill"),
        ]
        work = asyncio.create_task(caller.score(requests, at_once=24))
        await until(lambda: target.n_requests > 100, seconds=60)
        await until(lambda: target.in_flight > 4)
        cluster.scorers[0].kill()
        answered = {text_of(key) for key in caller.lines}
        lines = await work
        await caller.aclose()
    assert len(lines) == 400
    assert all(line.score == 1 for line in lines.values())
    sent = Counter(seen.text for seen in target.seen)
    assert len(sent) == 400
    repeated = {text for text, n in sent.items() if n > 1}
    assert not repeated & answered
    assert len(repeated) <= 16
    assert max(sent.values()) <= 2
    assert target.most_in_flight <= 16


def text_of(key: str) -> str:
    """Return what the target is sent for a line of a caller."""
    job, _, number = key.partition("/")
    return f"Instruction: Repeat.\n\nInput: {job} word {number}\nOutput:"


async def test_the_slots_of_a_dead_scorer_are_free_again_when_its_lease_ends(
    cluster: Cluster,
) -> None:
    async with serving("slots") as target:
        target.latency = 4.0
        first, second = Caller(cluster.urls[:1]), Caller(cluster.urls[1:2])
        lost = asyncio.create_task(first.score(job_requests("a", 2, target="slots")))
        await until(lambda: target.in_flight == 2)
        cluster.scorers[0].kill()
        killed = time.monotonic()
        lost.cancel()
        target.latency = 0.0
        lines = await second.score(job_requests("b", 4, target="slots"))
        took = time.monotonic() - killed
        await first.aclose()
        await second.aclose()
    assert len(lines) == 4
    assert LEASE_SECONDS - 2 < took < LEASE_SECONDS + 2


@pytest.mark.parametrize("what", ["flushed", "restarted", "paused"])
async def test_redis_away_stops_calls_and_the_limit_holds_to_one_burst(
    cluster: Cluster, what: str
) -> None:
    n_examples, burst, per_second = 180, 20, 30
    async with serving(what) as target:
        caller = Caller(cluster.urls)
        work = asyncio.create_task(caller.score(job_requests("a", n_examples, target=what)))
        await until(lambda: target.n_requests > 60, seconds=60)
        if what == "flushed":
            cluster.redis.flush()
        else:
            go_away, come_back = {
                "restarted": (cluster.redis.stop, cluster.redis.start),
                "paused": (cluster.redis.pause, cluster.redis.resume),
            }[what]
            go_away()
            n_before = target.n_requests
            await until(lambda: "rate_limiter_unavailable" in caller.conditions)
            assert target.n_requests - n_before <= 8, "calls stop while Redis is away"
            come_back()
        lines = await work
        await caller.aclose()
    assert len(lines) == n_examples
    assert sum(line.calls for line in lines.values()) == target.n_requests
    assert target.n_requests - n_examples == sum(line.failed_calls for line in lines.values())
    above = most_above([seen.at for seen in target.seen], per_second)
    n_bursts = 1 if what == "paused" else 2
    assert above <= n_bursts * burst + JITTER_SECONDS * per_second


async def test_scorers_share_one_limit_and_jobs_share_it_by_weight(cluster: Cluster) -> None:
    """The short form of benchmarks/limiter.py, which runs for a minute."""
    per_second, burst, seconds = 30, 3, 6.0
    weights = {"a": 1.0, "b": 1.0, "c": 2.0}
    async with serving("shared") as target:
        caller = Caller(cluster.urls)
        requests = [
            request
            for job, weight in weights.items()
            for request in job_requests(job, 240, weight=weight, target="shared")
        ]
        work = asyncio.create_task(caller.score(requests))
        await until(lambda: target.n_requests > 0, seconds=30)
        begun = target.seen[0].at + 1
        await until(lambda: target.seen[-1].at - begun > seconds, seconds=60)
        work.cancel()
        await asyncio.wait({work})
        await caller.aclose()
    counted = [seen for seen in target.seen if begun <= seen.at <= begun + seconds]
    above = most_above([seen.at for seen in target.seen], per_second)
    assert above <= burst + JITTER_SECONDS * per_second
    assert len(counted) >= 0.7 * per_second * seconds
    for job, weight in weights.items():
        share = sum(f"{job} word" in seen.text for seen in counted) / len(counted)
        assert share == pytest.approx(weight / 4, rel=0.15)


async def test_an_answer_is_bought_by_one_of_the_scorers_that_need_it(cluster: Cluster) -> None:
    async with serving("once") as target:
        target.latency = 0.1
        callers = [Caller([url]) for url in cluster.urls[:2]]
        async with asyncio.TaskGroup() as group:
            for caller in callers:
                group.create_task(caller.score(job_requests("a", 40, target="once")))
        lines = [line for caller in callers for line in caller.lines.values()]
        for caller in callers:
            await caller.aclose()
    assert target.n_requests == 40
    assert sum(line.calls for line in lines) == 40
    assert sum(line.cached for line in lines) == 40


async def test_a_scorer_that_is_told_to_stop_finishes_what_it_accepted(cluster: Cluster) -> None:
    scorer = cluster.scorers[0]
    async with serving("stop") as target:
        target.latency = 0.8
        remote = HttpScorer(scorer.url)
        lines = []
        async for line in remote.score(request_for(8, target="stop")):
            if isinstance(line, ScoreLine):
                if not lines:
                    scorer.terminate()
                lines.append(line)
        await remote.aclose()
    assert [line.score for line in lines] == [1.0] * 8
    assert lines[-1].latency_ms is not None, "it was bought after the signal"
    assert scorer.wait(20) == 0
    with pytest.raises(ScorerUnavailable):
        await HttpScorer(scorer.url).targets()
    assert not [one.errors() for one in cluster.scorers if "Traceback" in one.errors()]
