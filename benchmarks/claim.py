"""Claims a second, fairness, what a job costs the database, and whether a runner's memory is flat.

    python -m benchmarks.claim --smoke                 # seconds, for correctness only
    python -m benchmarks.claim                         # a few minutes on an idle machine
    python -m benchmarks.claim --memory-minutes 20     # only a runner's memory, watched for so long

Three claimers share one Postgres. Queues of growing length show what a claim costs as they grow;
a queue of three unequal tenants shows who waits. One job whose target costs nothing shows the
commits, statements and bytes of a step and of an evaluation.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from sqlalchemy import insert, text

from benchmarks.record import record
from services.optimizer import claims, store
from services.optimizer.database import Database, open_database
from services.optimizer.job_run import LoopDeps
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings
from services.optimizer.tables import JobRow
from tests.optimizer.worlds import PlainGenerator, PlainScorer, make_spec

TENANTS: Mapping[str, float] = {"large": 0.9, "middle": 0.09, "small": 0.01}
COUNTERS = (
    "SELECT xact_commit, tup_inserted, tup_updated FROM pg_stat_database "
    "WHERE datname = current_database()"
)
SIZE = "SELECT pg_database_size(current_database())"


@dataclass(frozen=True)
class Scale:
    """What is measured."""

    queues: Sequence[int]
    claims: int
    claimers: int
    calls: int
    memory_seconds: float


FULL = Scale((1_000, 10_000, 100_000), 1_000, 3, 1_000, 60.0)
SMOKE = Scale((100, 300), 50, 3, 60, 3.0)


@contextmanager
def postgres() -> Iterator[Any]:
    """Run a Postgres and yield what makes databases on it; None where none is installed."""
    try:
        from tests.faults.cluster import Postgres
    except ImportError:
        yield None
        return

    new = tempfile.TemporaryDirectory(prefix="iz-postgres-", ignore_cleanup_errors=True)
    with new as folder:
        server = Postgres(folder)
        try:
            yield server.new_database
        finally:
            server.stop()


async def fill(database: Database, tenants: Mapping[str, int]) -> None:
    """Queue jobs of some tenants, the largest first."""
    spec = make_spec()
    shared = {
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "spec_hash": spec.spec_hash(),
        "seed": 0,
    }
    for tenant, n in tenants.items():
        rows = [{**shared, "id": f"{tenant}_{i:06}", "tenant": tenant} for i in range(n)]
        async with database.writes.begin() as session:
            await session.execute(insert(JobRow), rows)
    async with database.engine.connect() as connection:
        plain = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await plain.execute(text("ANALYZE"))


async def claim_all(database: Database, n: int, claimers: int) -> list[tuple[str, float]]:
    """Claim up to n jobs by several claimers at once; return (tenant, seconds) in order."""
    taken: list[tuple[str, float]] = []

    async def claimer(number: int) -> None:
        while len(taken) < n:
            begun = time.perf_counter()
            found = await store.transact(
                database.writes,
                lambda s: claims.claim_job(s, runner_id=f"r{number}", lease_seconds=3_600.0),
            )
            if found is None:
                return
            taken.append((found.job_id.partition("_")[0], time.perf_counter() - begun))

    async with asyncio.TaskGroup() as group:
        for number in range(claimers):
            group.create_task(claimer(number))
    return taken


async def measure_queue(url: str, length: int, scale: Scale) -> dict[str, float]:
    """Return what a claim costs at this length of the queue."""
    database = open_database(url)
    await fill(database, {"one": length})
    begun = time.perf_counter()
    taken = await claim_all(database, min(scale.claims, length), scale.claimers)
    seconds = time.perf_counter() - begun
    await database.close()
    took = sorted(each for _, each in taken)
    return {
        "claims_per_second": round(len(taken) / seconds, 1),
        "median_ms": round(1000 * median(took), 2),
        "p99_ms": round(1000 * quantiles(took, n=100)[98], 2),
    }


async def measure_fairness(url: str, n: int, claimers: int) -> dict[str, Any]:
    """Return at which claim each tenant's last job began, the large tenant having come first."""
    database = open_database(url)
    tenants = {tenant: max(round(share * n), 1) for tenant, share in TENANTS.items()}
    await fill(database, tenants)
    order = [tenant for tenant, _ in await claim_all(database, n, claimers)]
    await database.close()
    last = {tenant: n - order[::-1].index(tenant) for tenant in tenants}
    return {"jobs": tenants, "last_job_claimed_at": last, "claimed": dict(Counter(order))}


async def measure_job(url: str, calls: int) -> dict[str, float]:
    """Return what one job costs the database, by step and by evaluation."""
    database = open_database(url)
    spec = make_spec(budget={"calls": calls}, strategy="random")
    async with database.writes.begin() as session:
        session.add(JobRow.of("job", spec))
    settings = Settings(database_url=url)  # type: ignore[arg-type]
    runner = Runner(LoopDeps(database, PlainGenerator(), PlainScorer(in_flight=16), settings))
    before, begun = await _figures(database), time.process_time()
    await runner.run_one("job")
    spent = time.process_time() - begun
    runner.close()
    await asyncio.sleep(1.5)  # Postgres tells its figures once a second
    after = await _figures(database)
    async with database.reads() as session:
        row = await session.get_one(JobRow, "job")
        steps, evaluations = row.step + 1, row.n_evaluations
    await database.close()
    commits, inserted, updated, size = (b - a for a, b in zip(before, after, strict=True))
    return {
        "steps": steps,
        "evaluations": evaluations,
        "commits_per_step": round(commits / steps, 1),
        "commits_per_evaluation": round(commits / evaluations, 2),
        "rows_inserted_per_evaluation": round(inserted / evaluations, 2),
        "rows_updated_per_evaluation": round(updated / evaluations, 2),
        "bytes_per_evaluation": round(size / evaluations),
        "runner_cpu_ms_per_evaluation": round(1000 * spent / evaluations, 2),
    }


async def _figures(database: Database) -> tuple[int, ...]:
    async with database.engine.connect() as connection:
        counted = (await connection.execute(text(COUNTERS))).one()
        size = (await connection.execute(text(SIZE))).scalar_one()
    return (*counted, size)


async def measure_memory(url: str, seconds: float) -> dict[str, Any]:
    """Return a runner process's memory while it works through jobs."""
    import psutil

    from tests.faults.world import open_world

    samples: list[float] = []
    async with open_world(url) as world:
        runner = world.start()
        ended, number = time.monotonic() + seconds, 0
        while time.monotonic() < ended:
            await world.add(f"job_{number}", budget={"trials": 12}, seed=number)
            await world.ended(f"job_{number}", seconds=600)
            number += 1
            samples.append(psutil.Process(runner.pid).memory_info().rss / 2**20)
            world.target.seen.clear()
        await runner.end()
    third = max(len(samples) // 3, 1)
    return {
        "seconds": seconds,
        "jobs": number,
        "first_mb": round(samples[0], 1),
        "median_of_second_third_mb": round(median(samples[third : 2 * third] or samples), 1),
        "median_of_last_third_mb": round(median(samples[-third:]), 1),
        "most_mb": round(max(samples), 1),
    }


def watch(minutes: float, console: Console) -> None:
    """Watch a runner's memory and keep it in a result file of its own."""
    load = round(os.getloadavg()[0], 2)
    with postgres() as new:
        if new is None:
            console.print("no Postgres here (install the dev extra): nothing is measured")
            return
        found = asyncio.run(measure_memory(new("memory"), 60 * minutes))
    console.print_json(data=found)
    console.print(str(record("runner_memory", {"load_at_start": load, **found})))


def main() -> None:
    """Measure, show, and keep the result unless it is a smoke run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="small and quick; writes nothing")
    parser.add_argument(
        "--memory-minutes", type=float, help="watch a runner's memory for so long, and no more"
    )
    options = parser.parse_args()
    scale, console = SMOKE if options.smoke else FULL, Console()
    if options.memory_minutes is not None:
        watch(options.memory_minutes, console)
        return
    load = round(os.getloadavg()[0], 2)
    content: dict[str, Any] = {"scale": asdict(scale), "load_at_start": load}
    with postgres() as new:
        if new is None:
            console.print("no Postgres here (install the dev extra): nothing is measured")
            return
        content["queues"] = {
            str(length): asyncio.run(measure_queue(new(f"queue_{length}"), length, scale))
            for length in scale.queues
        }
        content["fairness"] = asyncio.run(
            measure_fairness(new("fair"), scale.queues[0], scale.claimers)
        )
        content["job"] = asyncio.run(measure_job(new("job"), scale.calls))
        content["memory"] = asyncio.run(measure_memory(new("memory"), scale.memory_seconds))
    console.print_json(data=content)
    if not options.smoke:
        console.print(str(record("claim", content)))


if __name__ == "__main__":
    main()
