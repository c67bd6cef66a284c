"""Status polls: how soon `GET /jobs/{id}` answers while a thousand jobs run.

    python -m benchmarks.api --smoke     # seconds, for correctness only
    python -m benchmarks.api             # two minutes on an idle machine

One API process on Postgres with 1,000 running jobs, whose rows change as runners would change
them; and once more with 1,000 queued jobs, on which three runners work as processes beside it, with
scorers, generator and target. Polls arrive at a fixed rate whether or not earlier ones were
answered, so that a slow answer delays nobody else's clock. The figures hold the client's own share,
on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import psutil
import yaml
from rich.console import Console
from sqlalchemy import func, insert, select, text

from benchmarks.claim import postgres
from benchmarks.record import record
from instructzero.contracts import JobSpec
from services.optimizer.database import Database, open_database
from services.optimizer.tables import JobRow
from tests.optimizer.worlds import make_spec

CHANGES_PER_SECOND = 50
TARGET_LATENCY_MS = 250.0
STARTING_SECONDS = 20.0
"""Three new runners begin 24 jobs at once, which takes all of two cores; polls then take longer."""


@dataclass(frozen=True)
class Scale:
    """What is measured."""

    jobs: int
    polls_per_second: int
    seconds: float


FULL = Scale(1_000, 200, 30.0)
SMOKE = Scale(50, 50, 2.0)


async def fill(database: Database, n: int) -> None:
    """Store running jobs."""
    spec = make_spec()
    shared = {
        "name": spec.name, "tenant": spec.tenant, "spec": spec.model_dump(mode="json"),
        "spec_hash": spec.spec_hash(), "seed": 0, "status": "running", "runner_id": "r",
        "lease_expires_at": 9 * 10**15, "started_at": 0,
    }  # fmt: skip
    async with database.writes.begin() as session:
        await session.execute(insert(JobRow), [{**shared, "id": f"job_{n}"} for n in range(n)])


async def keep_changing(database: Database, n_jobs: int) -> None:
    """Change jobs as their runners would, until cancelled."""
    draw = random.Random(0)  # noqa: S311 - a load, no secret
    while True:
        async with database.engine.begin() as connection:
            await connection.execute(
                text("UPDATE jobs SET version = version + 1, calls = calls + 8 WHERE id = :id"),
                {"id": f"job_{draw.randrange(n_jobs)}"},
            )
        await asyncio.sleep(1 / CHANGES_PER_SECOND)


async def poll(url: str, scale: Scale, *, with_tag: bool) -> dict[str, Any]:
    """Poll at a fixed rate; return the times of the answers, and their statuses."""
    took: list[float] = []
    statuses: Counter[int] = Counter()
    tags: dict[str, str] = {}
    draw = random.Random(1)  # noqa: S311 - a load, no secret

    async def ask(http: aiohttp.ClientSession, job_id: str, due: float) -> None:
        headers = {"If-None-Match": tags[job_id]} if with_tag and job_id in tags else {}
        async with http.get(f"{url}/jobs/{job_id}", headers=headers) as response:
            await response.read()
            statuses[response.status] += 1
            tags[job_id] = response.headers["etag"]
        took.append(time.perf_counter() - due)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
        begun = time.perf_counter()
        for number in range(int(scale.polls_per_second * scale.seconds)):
            due = begun + number / scale.polls_per_second
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            job_id = f"job_{draw.randrange(scale.jobs)}"
            group.create_task(ask(http, job_id, due))
        seconds = time.perf_counter() - begun
    return {**_spread(took), "per_second": round(len(took) / seconds, 1), "statuses": statuses}


def _spread(took: Sequence[float]) -> dict[str, float]:
    cuts = quantiles(took, n=1000)
    return {
        "median_ms": round(1000 * median(took), 2),
        "p95_ms": round(1000 * cuts[949], 2),
        "p99_ms": round(1000 * cuts[989], 2),
        "most_ms": round(1000 * max(took), 2),
    }


async def measure(url: str, database_url: str, scale: Scale, api: psutil.Process) -> dict[str, Any]:
    """Poll plainly, then with the tag seen last."""
    database = open_database(database_url)
    await fill(database, scale.jobs)
    changing = asyncio.create_task(keep_changing(database, scale.jobs))
    warm = Scale(scale.jobs, scale.polls_per_second, 2.0)
    await poll(url, warm, with_tag=False)
    found = {}
    for name, with_tag in (("plain", False), ("with the tag seen last", True)):
        before = api.cpu_times()
        found[name] = await poll(url, scale, with_tag=with_tag)
        after = api.cpu_times()
        spent = after.user + after.system - before.user - before.system
        n_polls = scale.polls_per_second * scale.seconds
        found[name]["api_processor_ms_a_poll"] = round(1000 * spent / n_polls, 2)
    changing.cancel()
    await asyncio.wait({changing})
    await database.close()
    return found


def measure_beside_runners(scale: Scale) -> dict[str, Any]:
    """Poll queued jobs while three runners work through them."""
    from tests.faults.cluster import Size, running, servers
    from tests.faults.workload import make_work

    works = make_work(scale.jobs, seed=0)
    rows = [
        JobRow.of(f"job_{n}", JobSpec.model_validate(work.spec)) for n, work in enumerate(works)
    ]

    async def work(url: str, database_url: str) -> dict[str, Any]:
        database = open_database(database_url)
        async with database.writes.begin() as session:
            session.add_all(rows)
        seconds = min(STARTING_SECONDS, scale.seconds)
        starting = Scale(scale.jobs, scale.polls_per_second, seconds)
        begun = await poll(url, starting, with_tag=False)
        before = await calls_made(database)
        found = await poll(url, scale, with_tag=False)
        found["calls_a_second"] = round((await calls_made(database) - before) / scale.seconds, 1)
        await database.close()
        return {"while they begin": begun, "later": found}

    with (
        tempfile.TemporaryDirectory() as name,
        servers() as (postgres, redis),
        running(Path(name), postgres, redis, Size(apis=1)) as cluster,
    ):
        cluster.restart_target(TARGET_LATENCY_MS)
        return asyncio.run(work(cluster.api_urls[0], cluster.database_url))


async def calls_made(database: Database) -> int:
    """Return what all jobs have bought."""
    async with database.reads() as session:
        return int(await session.scalar(select(func.sum(JobRow.calls))) or 0)


@contextmanager
def served(database_url: str) -> Iterator[tuple[str, psutil.Process]]:
    """Yield the address and the process of an API on a database."""
    from tests.faults.cluster import Part
    from tests.faults.system import free_port

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets = {"targets": {"world": {"base_url": "http://127.0.0.1:9/v1", "model": "none"}}}
        (folder / "targets.yaml").write_text(yaml.safe_dump(targets))
        port = str(free_port())
        arguments = ["serve", "--no-runner", "--port", port, "--database", database_url,
                     "--targets", str(folder / "targets.yaml")]  # fmt: skip
        api = Part("api", arguments, folder, url=f"http://127.0.0.1:{port}")
        api.start()
        try:
            api.wait_until_up()
            yield str(api.url), psutil.Process(api.pid)
        finally:
            api.terminate()


def main() -> None:
    """Measure, show, and keep the result unless it is a smoke run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="small and quick; writes nothing")
    options = parser.parse_args()
    scale, console = SMOKE if options.smoke else FULL, Console()
    load = round(os.getloadavg()[0], 2)
    content: dict[str, Any] = {"scale": asdict(scale), "load_at_start": load}
    with postgres() as new:
        if new is None:
            console.print("no Postgres here (install the dev extra): nothing is measured")
            return
        database_url = new("api")
        with served(database_url) as (url, process):
            content |= asyncio.run(measure(url, database_url, scale, process))
            content["api_mb"] = round(process.memory_info().rss / 2**20, 1)
        content["beside three runners"] = measure_beside_runners(scale)
    console.print_json(data=content)
    if not options.smoke:
        console.print(str(record("api", content)))


if __name__ == "__main__":
    main()
