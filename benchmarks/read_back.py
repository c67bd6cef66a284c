"""Reading back what jobs left: one long job for a runner that takes it over, all for an export.

    python -m benchmarks.read_back --smoke     # seconds, for correctness only
    python -m benchmarks.read_back             # some minutes on an idle machine

A hundred jobs of 3,000 evaluations lie in Postgres. One is read as a runner reads it that claims it
after another has died; then all are exported over HTTP, one after the other, while the memory of
the API's process is watched.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import aiohttp
import psutil
from rich.console import Console
from sqlalchemy import insert, text

from benchmarks.api import served
from benchmarks.claim import postgres
from benchmarks.record import record
from instructzero.contracts import JobSpec
from services.optimizer import store
from services.optimizer.database import open_database
from services.optimizer.jobs import Connections
from services.optimizer.seals import seal
from services.optimizer.state import JobState
from services.optimizer.tables import ArmRow, EvaluationRow, JobRow
from tests.optimizer.worlds import PlainScorer, make_spec

N_EXAMPLES = 50
COPIES = {
    "jobs": "UPDATE copied SET id = 'job_' || :n",
    "arms": "UPDATE copied SET job_id = 'job_' || :n",
    "evaluations": "UPDATE copied SET job_id = 'job_' || :n",
}


@dataclass(frozen=True)
class Scale:
    """What is measured."""

    jobs: int
    arms: int
    readings: int


FULL = Scale(100, 60, 20)
SMOKE = Scale(3, 4, 2)


def spec() -> JobSpec:
    """Return a job with as many examples as its evaluations name."""
    pairs = [{"input": f"word {n}", "output": ["b"]} for n in range(N_EXAMPLES + 10)]
    return make_spec(task={"exemplars": pairs[:5], "test": pairs[5:10], "validation": pairs[10:]})


async def fill(url: str, scale: Scale) -> None:
    """Store the jobs: the first by rows, the others as its copies."""
    job, database = spec(), open_database(url)
    head = {"job_id": "job_0", "step": 0}
    arms = [
        {**head, "n": n, "text": f"Rule {n}: answer with one word.", "source": "soft_prompt"}
        for n in range(scale.arms)
    ]
    evaluations = [
        {**head, "split": "validation", "arm": arm, "example": example, "score": 1.0,
         "answer": f"a typical answer of some words, {example}", "calls": 1}
        for arm in range(scale.arms)
        for example in range(N_EXAMPLES)
    ]  # fmt: skip
    async with database.writes.begin() as session:
        session.add(
            JobRow.of(
                "job_0",
                job,
                status="succeeded",
                n_arms=scale.arms,
                n_evaluations=len(evaluations),
            )
        )
        await session.flush()
        sealed = [{**row, "seal": seal(ArmRow, row), "trial": row["n"] + 1} for row in arms]
        await session.execute(insert(ArmRow), sealed)
        await session.execute(
            insert(EvaluationRow),
            [{**row, "seal": seal(EvaluationRow, row)} for row in evaluations],
        )
        for number in range(1, scale.jobs):
            for table, rename in COPIES.items():
                await session.execute(text("DROP TABLE IF EXISTS copied"))
                key = "id" if table == "jobs" else "job_id"
                await session.execute(
                    text(
                        f"CREATE TEMP TABLE copied AS SELECT * FROM {table} "  # noqa: S608 - ours
                        f"WHERE {key} = 'job_0'"
                    )
                )
                await session.execute(text(rename), {"n": str(number)})
                await session.execute(text(f"INSERT INTO {table} SELECT * FROM copied"))  # noqa: S608
    await database.close()


async def measure_reading(url: str, scale: Scale) -> dict[str, Any]:
    """Return how long a runner takes to have a job's whole state again."""
    connections = Connections((await PlainScorer().targets())[0])
    database, took, n = open_database(url), [], 0
    for _ in range(scale.readings):
        begun = time.perf_counter()
        async with database.reads() as session:
            journal = await store.load_journal(session, "job_0")
        state = JobState.open("job_0", spec(), connections)
        state.load(journal)
        took.append(time.perf_counter() - begun)
        n = len(journal.evaluations)
    await database.close()
    return {
        "evaluations": n,
        "median_ms": round(1000 * median(took), 1),
        "most_ms": round(1000 * max(took), 1),
    }


async def measure_exports(url: str, scale: Scale, api: psutil.Process) -> Mapping[str, Any]:
    """Return how the API's memory moves while every job is exported."""
    n_bytes = n_lines = 0
    memory: list[float] = []

    def now_mb() -> float:
        return float(api.memory_info().rss) / 2**20

    async with aiohttp.ClientSession() as http:
        before, begun = now_mb(), time.perf_counter()
        for number in range(scale.jobs):
            async with http.get(f"{url}/jobs/job_{number}/export") as response:
                response.raise_for_status()
                async for chunk in response.content.iter_any():
                    n_bytes += len(chunk)
                    n_lines += chunk.count(b"\n")
                memory.append(now_mb())
        seconds = time.perf_counter() - begun
    tenth = max(len(memory) // 10, 1)
    return {
        "jobs": scale.jobs,
        "evaluations": n_lines,
        "mb": round(n_bytes / 1e6, 1),
        "seconds": round(seconds, 1),
        "before_mb": round(before, 1),
        "after_the_first_tenth_mb": round(memory[tenth - 1], 1),
        "most_mb": round(max(memory), 1),
        "last_mb": round(memory[-1], 1),
    }


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
        url = new("read_back")
        asyncio.run(fill(url, scale))
        content["reading"] = asyncio.run(measure_reading(url, scale))
        with served(url) as (address, api):
            content["exports"] = asyncio.run(measure_exports(address, scale, api))
    console.print_json(data=content)
    if not options.smoke:
        console.print(str(record("read_back", content)))


if __name__ == "__main__":
    main()
