"""How close a whole job comes to the bound set by latency, and what a call costs in processor time.

    python -m benchmarks.pipeline --smoke     # seconds, for correctness only
    python -m benchmarks.pipeline             # four minutes on an idle machine

A job of 2,000 calls runs against a target with 500 ms latency and 64 calls in flight, embedded (one
process) and as runner and scorer apart. The same number of calls is made with the OpenAI SDK alone,
as it ships (httpx) and on its aiohttp transport, in the same run: what is ours is the difference.
Three rounds of all four; the medians are the result, and every round is in the file.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from benchmarks.logged_target import logged_target
from benchmarks.record import record
from instructzero.contracts import (
    GeneratedInstruction,
    GenerateRequest,
    GenerateResponse,
    JobSpec,
)
from services.answer_store import DatabaseCache
from services.optimizer.buyer import Scorer
from services.optimizer.clients import HttpScorer
from services.optimizer.database import Database, migrate, open_database
from services.optimizer.job_run import LoopDeps
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings
from services.optimizer.tables import JobRow
from services.scorer.scoring import ScorerPool
from services.scorer.targets import Targets

JOB = "job_1"


@dataclass(frozen=True)
class Size:
    """What is measured."""

    calls: int
    latency_seconds: float
    in_flight: int

    @property
    def bound_seconds(self) -> float:
        """The least time in which the calls can be made."""
        return self.calls * self.latency_seconds / self.in_flight


@dataclass(frozen=True)
class Measured:
    """One way of making the calls."""

    name: str
    calls: int
    seconds: float
    cpu_seconds: float

    @property
    def cpu_ms_per_call(self) -> float:
        """Processor time of everything but the target."""
        return self.cpu_seconds * 1000 / self.calls


FULL = Size(calls=2_000, latency_seconds=0.5, in_flight=64)
ROUNDS = 3
SMOKE = Size(calls=200, latency_seconds=0.05, in_flight=16)


class QuickGenerator:
    """Writes another instruction for each point and costs nothing."""

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Return one text per point."""
        texts = [
            f"Rule {abs(hash(point)) % 10**9}: give the right answer." for point in request.points
        ]
        return GenerateResponse(
            fingerprint="quick", instructions=tuple(GeneratedInstruction(text=t) for t in texts)
        )


def targets_of(base_url: str, size: Size) -> dict[str, Any]:
    """Return the content of the targets file."""
    return {
        "targets": {
            "logged": {
                "base_url": base_url,
                "model": "logged",
                "limits": {"in_flight": size.in_flight},
                "sampling": {"temperature": 0, "max_tokens": 32},
                "price": {"input_per_million": 0.15, "output_per_million": 0.6},
            }
        }
    }


def spec_of(size: Size) -> JobSpec:
    """Return a job that spends the calls: random search in one large step, then the final check."""
    return JobSpec.model_validate(
        {
            "name": "pipeline",
            "task": {
                "exemplars": [{"input": "a", "output": "b"}],
                "validation": [{"input": f"question {i}", "output": "right"} for i in range(100)],
                "test": [{"input": f"fresh question {i}", "output": "right"} for i in range(250)],
                "baseline": "Answer the question.",
            },
            "target": "logged",
            "strategy": {"name": "random", "options": {"batch": 100}},
            "budget": {"calls": size.calls},
        }
    )


@asynccontextmanager
async def job_database(url: str, spec: JobSpec) -> AsyncIterator[Database]:
    """Open a database that holds the one job."""
    await asyncio.to_thread(migrate, url)
    database = open_database(url)
    async with database.writes.begin() as session:
        session.add(JobRow.of(JOB, spec))
    try:
        yield database
    finally:
        await database.close()


def own_cpu_seconds() -> float:
    """Return the processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def run_job(
    name: str, open_scorer: Callable[[Database], Scorer], size: Size, other_cpu: Callable[[], float]
) -> Measured:
    """Run the job and measure it."""
    spec = spec_of(size)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/jobs.db"
        async with job_database(url, spec) as database:
            settings = Settings(database_url=SecretStr(url))
            deps = LoopDeps(database, QuickGenerator(), open_scorer(database), settings)
            runner = Runner(deps)
            cpu, begun = own_cpu_seconds() + other_cpu(), time.monotonic()
            if not await runner.run_one(JOB):
                raise RuntimeError("the job could not be claimed")
            seconds, cpu = time.monotonic() - begun, own_cpu_seconds() + other_cpu() - cpu
            runner.close()
            async with database.reads() as session:
                row = await session.get(JobRow, JOB)
    if row is None or row.status != "succeeded":
        raise RuntimeError("the job did not succeed")
    return Measured(name, row.calls, seconds, cpu)


def measure_embedded(base_url: str, size: Size) -> Measured:
    """Run the job with the scorer in the same process."""

    async def work() -> Measured:
        pools = []

        def open_pool(database: Database) -> ScorerPool:
            cache = DatabaseCache(database, ttl_seconds=86_400)
            pools.append(ScorerPool(Targets.of(targets_of(base_url, size)), cache=cache))
            return pools[0]

        try:
            return await run_job("embedded", open_pool, size, lambda: 0.0)
        finally:
            for pool in pools:
                await pool.aclose()

    return asyncio.run(work())


def measure_apart(base_url: str, size: Size) -> Measured:
    """Run the job with the scorer as a process of its own."""
    from tests.scorer.cluster import scorers

    async def work(url: str, scorer_cpu: Callable[[], float]) -> Measured:
        remote = HttpScorer(url)
        try:
            return await run_job("runner and scorer", lambda _: remote, size, scorer_cpu)
        finally:
            await remote.aclose()

    targets = targets_of(base_url, size)["targets"]
    with tempfile.TemporaryDirectory() as folder, scorers(Path(folder), 1, targets) as (scorer,):
        return asyncio.run(work(scorer.url, scorer.cpu_seconds))


def measure_sdk(base_url: str, size: Size, transport: str) -> Measured:
    """Make the calls with the SDK and nothing else."""

    async def work() -> Measured:
        http = openai.DefaultAioHttpClient() if transport == "aiohttp" else None
        client = openai.AsyncOpenAI(
            api_key="none", base_url=base_url, max_retries=0, http_client=http
        )
        numbers = iter(range(size.calls))

        async def call() -> None:
            for number in numbers:
                text = f"Instruction: Rule 1: give the right answer.\n\nInput: {number}\nOutput:"
                await client.chat.completions.create(
                    model="logged",
                    messages=[{"role": "user", "content": text}],
                    temperature=0,
                    max_tokens=32,
                )

        cpu, begun = own_cpu_seconds(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(size.in_flight):
                group.create_task(call())
        seconds, cpu = time.monotonic() - begun, own_cpu_seconds() - cpu
        await client.close()
        return Measured(f"SDK alone, {transport}", size.calls, seconds, cpu)

    return asyncio.run(work())


def measure_round(size: Size) -> list[Measured]:
    """Measure each way in a fresh process, one after the other, on one target; the SDK first."""
    context = multiprocessing.get_context("spawn")
    found = []
    with logged_target(size.latency_seconds) as target:
        works: list[tuple[Callable[..., Measured], tuple[Any, ...]]] = [
            (measure_sdk, (target.base_url, size, "httpx")),
            (measure_embedded, (target.base_url, size)),
            (measure_apart, (target.base_url, size)),
            (measure_sdk, (target.base_url, size, "aiohttp")),
        ]
        for work, arguments in works:
            with ProcessPoolExecutor(1, mp_context=context) as processes:
                found.append(processes.submit(work, *arguments).result())
    return found


def as_row(rounds: Sequence[Measured], sdk: Sequence[Measured], size: Size) -> dict[str, Any]:
    """Return the medians of one way beside the SDK as it ships, and each round."""
    bounds = [one.calls * size.latency_seconds / size.in_flight for one in rounds]
    figures = {
        "seconds": [one.seconds for one in rounds],
        "times_the_bound": [one.seconds / bound for one, bound in zip(rounds, bounds, strict=True)],
        "cpu_ms_per_call": [one.cpu_ms_per_call for one in rounds],
        "cpu_ms_above_sdk": [
            one.cpu_ms_per_call - bare.cpu_ms_per_call
            for one, bare in zip(rounds, sdk, strict=True)
        ],
    }
    return {
        "name": rounds[0].name,
        "calls": rounds[0].calls,
        **{name: round(statistics.median(values), 3) for name, values in figures.items()},
        "rounds": {name: [round(value, 3) for value in values] for name, values in figures.items()},
    }


def main() -> None:
    """Measure, show, and keep the result unless it is a smoke run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="small and quick; writes nothing")
    options = parser.parse_args()
    size = SMOKE if options.smoke else FULL
    load = os.getloadavg()[0]
    found = [measure_round(size) for _ in range(1 if options.smoke else ROUNDS)]
    ways = list(zip(*found, strict=True))
    rows = [as_row(way, ways[0], size) for way in ways]
    headings = [name for name in rows[0] if name != "rounds"]
    table = Table(*headings)
    for row in rows:
        table.add_row(*(str(row[name]) for name in headings))
    Console().print(table)
    if not options.smoke:
        content = {"size": asdict(size), "load_at_start": round(load, 2), "ways": rows}
        Console().print(str(record("pipeline", content)))


if __name__ == "__main__":
    main()
