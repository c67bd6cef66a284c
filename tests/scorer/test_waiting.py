"""Ten thousand requests that wait in one scorer cost memory and almost nothing else."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.scorer.cluster import ScorerProcess, job_requests, scorers
from tests.scorer.fake_target import FakeTarget

N_WAITING = 10_000
N_JOBS = 10
MOST_MB = 300
"""Of the whole process, which takes 85 MB before the first request."""
WATCHED_SECONDS = 5.0


async def test_ten_thousand_waiting_requests_take_little_memory_and_no_processor_time(
    target: FakeTarget, tmp_path: Path
) -> None:
    limits = {"requests_per_minute": 6, "burst": 1, "in_flight": 4}
    config = {"fake": {"base_url": target.base_url, "model": "fake", "limits": limits}}
    with scorers(tmp_path, 1, config) as (scorer,):
        bodies = [
            request.model_dump_json().encode()
            for job in range(N_JOBS)
            for request in job_requests(f"job-{job}", N_WAITING // N_JOBS, chunk=1)
        ]
        connections = await open_all(scorer, bodies)
        assert len(connections) == N_WAITING
        cpu, begun = scorer.cpu_seconds(), time.monotonic()
        await asyncio.sleep(WATCHED_SECONDS)
        used = (scorer.cpu_seconds() - cpu) / (time.monotonic() - begun)
        memory = scorer.memory_mb()
        for writer in connections:
            writer.close()
    assert memory < MOST_MB
    assert used < 0.1, "waiting is no work"
    assert target.n_requests < 30


async def open_all(scorer: ScorerProcess, bodies: list[bytes]) -> list[asyncio.StreamWriter]:
    """Send every request and return when each has said that it waits, or was answered."""
    port = int(scorer.url.rpartition(":")[2])
    opening = asyncio.Semaphore(200)
    writers: list[asyncio.StreamWriter] = []

    async def send(body: bytes) -> None:
        async with opening:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST /v1/scores HTTP/1.1\r\nhost: scorer\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")  # more would fill the accept queue
        assert b" 200 " in head.splitlines()[0]
        await reader.readuntil(b"}")
        writers.append(writer)

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(send(body))
    return writers
