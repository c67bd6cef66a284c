"""Permits a second, fair shares, and whether a shared limit is kept and used.

    python -m benchmarks.limiter --smoke     # seconds, for correctness only
    python -m benchmarks.limiter             # three minutes on an idle machine

Grants: callers of one process acquire and settle as fast as they can, in process and on Redis.
Sharing: three jobs with weights 1:1:2 keep more calls waiting than 600 requests and 90,000 tokens a
minute allow, through four scorers on one Redis and through one scorer in process. Judged by the
target's own log, in steady state: after the first burst.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.logged_target import Call, LoggedTarget, logged_target
from benchmarks.record import record
from instructzero.contracts import ScoreExample, ScoreRequest
from services.optimizer.buyer import Scorer
from services.optimizer.clients import HttpScorer
from services.scorer.limiter_state import Feedback, Pace
from services.scorer.rate_limit import LocalGate, RateLimiter
from services.scorer.redis_gate import RedisGate
from services.scorer.redis_link import open_redis
from services.scorer.scoring import ScorerPool
from services.scorer.targets import Targets

WEIGHTS: Mapping[str, float] = {"a": 1.0, "b": 1.0, "c": 2.0}
N_SCORERS = 4
WINDOWS_SECONDS = (1.0, 5.0, 10.0, 30.0, 60.0)
CHUNK = 8
UNLIMITED = Pace(0.0, 1.0, 0.0, 1e15, 1_000_000, 30e6)


@dataclass(frozen=True)
class Size:
    """What is measured."""

    seconds: float
    grant_seconds: float
    requests_per_minute: float
    tokens_per_minute: float
    burst: int
    latency_seconds: float


FULL = Size(60.0, 5.0, 600, 90_000, 60, 0.2)
SMOKE = Size(4.0, 0.5, 1_200, 180_000, 10, 0.05)


@contextmanager
def redis_url() -> Iterator[str | None]:
    """Run a Redis; None where its binary is not installed."""
    try:
        from tests.scorer.redis_server import RedisServer
    except ImportError:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


async def grants_per_second(limiter: RateLimiter, seconds: float, n_callers: int = 64) -> float:
    """Return how many permits one process takes and gives back in a second."""
    end = time.monotonic() + seconds
    n_granted = 0

    async def take(number: int) -> None:
        nonlocal n_granted
        while time.monotonic() < end:
            permit = await limiter.acquire(
                "scope",
                UNLIMITED,
                job=f"job-{number % 3}",
                weight=1.0,
                tokens=100.0,
                notice=lambda _: None,
            )
            await limiter.settle(permit, Feedback())
            n_granted += 1

    begun = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(n_callers):
            group.create_task(take(number))
    return n_granted / (time.monotonic() - begun)


async def measure_grants(size: Size, redis: str | None) -> dict[str, float]:
    """Return permits a second of both gates."""
    found = {}
    limiter = RateLimiter(LocalGate())
    found["in process"] = round(await grants_per_second(limiter, size.grant_seconds))
    await limiter.aclose()
    if redis is not None:
        limiter = RateLimiter(RedisGate(open_redis(redis)))
        found["redis"] = round(await grants_per_second(limiter, size.grant_seconds))
        await limiter.aclose()
    return found


def connection(target: LoggedTarget, size: Size) -> dict[str, Any]:
    """Return the target's entry in the targets file."""
    return {
        "base_url": target.base_url,
        "model": "logged",
        "limits": {
            "requests_per_minute": size.requests_per_minute,
            "tokens_per_minute": size.tokens_per_minute,
            "in_flight": 64,
            "burst": size.burst,
        },
        "sampling": {"max_tokens": 64},
    }


async def keep_asking(scorers: Sequence[Scorer], seconds: float) -> None:
    """Keep more calls of every job waiting than the limit allows, on every scorer."""

    async def ask(job: str, weight: float, number: int) -> None:
        scorer = scorers[number % len(scorers)]
        for turn in range(10**9):
            request = ScoreRequest(
                job_id=job,
                target="logged",
                weight=weight,
                instruction=f"{job} repeats.",
                examples=tuple(
                    ScoreExample(id=str(i), input=f"{job} {number} {turn} {i}", outputs=("right",))
                    for i in range(CHUNK)
                ),
            )
            async for _ in scorer.score(request):
                pass

    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for job, weight in WEIGHTS.items():
                for number in range(4 * len(scorers)):
                    group.create_task(ask(job, weight, number))
    except TimeoutError:
        return


async def ask_scorers(urls: Sequence[str], seconds: float) -> None:
    """Ask scorers over HTTP."""
    remote = [HttpScorer(url) for url in urls]
    await keep_asking(remote, seconds)
    for scorer in remote:
        await scorer.aclose()


async def ask_in_process(target: LoggedTarget, size: Size, seconds: float) -> None:
    """Ask one pool in this process."""
    pool = ScorerPool(Targets.of({"targets": {"logged": connection(target, size)}}))
    await keep_asking([pool], seconds)
    await pool.aclose()


def most_in_window(calls: Sequence[tuple[float, float]], seconds: float) -> float:
    """Return the most that (time, amount) pairs add up to in any window of this length."""
    most = held = 0.0
    first = 0
    for at, amount in calls:
        held += amount
        while calls[first][0] <= at - seconds:
            held -= calls[first][1]
            first += 1
        most = max(most, held)
    return most


def judge(calls: Sequence[Call], size: Size) -> dict[str, Any]:
    """Return what the target's log says of limit, use and shares."""
    ordered = sorted(calls)
    per_second = size.requests_per_minute / 60
    drained = ordered[0].at + 1.0  # the first burst is over
    steady = [call for call in ordered if drained < call.at <= drained + size.seconds]
    requests = [(call.at, 1.0) for call in ordered]
    tokens = [(call.at, float(call.tokens)) for call in ordered]
    windows = {
        f"{seconds:g} s": {
            "requests": most_in_window(requests, seconds),
            "allowed": per_second * seconds + size.burst,
            "tokens": most_in_window(tokens, seconds),
            "tokens_allowed": size.tokens_per_minute * (seconds / 60 + 0.1),
        }
        for seconds in WINDOWS_SECONDS
        if seconds <= size.seconds
    }
    counted = Counter(call.job for call in steady)
    total = sum(WEIGHTS.values())
    shares = {job: counted[job] / len(steady) for job in WEIGHTS}
    return {
        "calls": len(ordered),
        "used_of_allowed": round(len(steady) / (per_second * size.seconds), 4),
        "most_in_window": windows,
        "limit_kept": all(
            window["requests"] <= window["allowed"] + 1
            and window["tokens"] <= window["tokens_allowed"] + 1
            for window in windows.values()
        ),
        "shares": {job: round(share, 4) for job, share in shares.items()},
        "largest_error_of_a_share": round(
            max(abs(shares[job] * total / weight - 1) for job, weight in WEIGHTS.items()), 4
        ),
    }


def measure_cluster(size: Size, redis: str) -> dict[str, Any]:
    """Measure four scorer processes on one Redis."""
    from tests.scorer.cluster import scorers

    with ExitStack() as stack:
        target = stack.enter_context(logged_target(size.latency_seconds))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        targets = {"logged": connection(target, size)}
        running = stack.enter_context(scorers(Path(folder), N_SCORERS, targets, redis))
        cpu = sum(scorer.cpu_seconds() for scorer in running)
        asyncio.run(ask_scorers([scorer.url for scorer in running], size.seconds + 2))
        calls = target.calls()
        cpu = sum(scorer.cpu_seconds() for scorer in running) - cpu
    return {**judge(calls, size), "scorers": N_SCORERS, "cpu_share": round(cpu / size.seconds, 4)}


def measure_in_process(size: Size) -> dict[str, Any]:
    """Measure one pool without Redis."""
    with logged_target(size.latency_seconds) as target:
        asyncio.run(ask_in_process(target, size, size.seconds + 2))
        return judge(target.calls(), size)


def main() -> None:
    """Measure, show, and keep the result unless it is a smoke run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="small and quick; writes nothing")
    options = parser.parse_args()
    size, console = SMOKE if options.smoke else FULL, Console()
    content: dict[str, Any] = {
        "size": asdict(size),
        "load_at_start": round(os.getloadavg()[0], 2),
        "weights": dict(WEIGHTS),
    }
    with redis_url() as redis:
        content["grants_per_second"] = asyncio.run(measure_grants(size, redis))
        content["in process"] = measure_in_process(size)
        if redis is None:
            console.print("no redis-server here (install the dev extra): one process only")
        else:
            content["four scorers, one redis"] = measure_cluster(size, redis)
    console.print_json(data=content)
    if not options.smoke:
        console.print(str(record("limiter", content)))


if __name__ == "__main__":
    main()
