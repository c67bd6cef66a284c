"""Scorers as processes of their own, which a test may kill, and a caller as patient as a runner."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from instructzero.contracts import ScoreCondition, ScoreExample, ScoreLine, ScoreRequest
from instructzero.errors import ScorerUnavailable
from services.optimizer.clients import HttpScorer

COMMAND = str(Path(sys.executable).parent / "instructzero")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ScorerProcess:
    """One scorer on loopback, which can be started again on the same address."""

    def __init__(self, folder: Path, targets: Path, redis_url: str | None, **settings: Any) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._options = ["--port", str(port), "--targets", str(targets)]
        if redis_url is not None:
            self._options += ["--redis", redis_url]
        self._named = {f"IZ_SCORER_{name.upper()}": str(value) for name, value in settings.items()}
        self._log = folder / f"scorer-{port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [COMMAND, "scorer", *self._options],
                env={**os.environ, **self._named},  # noqa: TID251 - the child needs ours
                stdout=log,
                stderr=log,
            )

    def wait_until_up(self, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                assert self.is_running, self.errors()
                assert time.monotonic() < deadline, "the scorer did not start"
                time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def terminate(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def errors(self) -> str:
        return self._log.read_text()

    def memory_mb(self) -> float:
        return float(self._measured().memory_info().rss) / 2**20

    def cpu_seconds(self) -> float:
        times = self._measured().cpu_times()
        return float(times.user + times.system)

    def _measured(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)


@contextmanager
def scorers(
    folder: Path, n: int, targets: dict[str, Any], redis_url: str | None = None, **settings: Any
) -> Iterator[list[ScorerProcess]]:
    """Run n scorers on one targets file."""
    file = folder / "targets.yaml"
    file.write_text(yaml.safe_dump({"targets": targets}))
    made = [ScorerProcess(folder, file, redis_url, **settings) for _ in range(n)]
    try:
        start_all(made)
        yield made
    finally:
        for scorer in made:
            scorer.kill()


def start_all(made: Sequence[ScorerProcess]) -> None:
    """Start those that do not run and wait for them."""
    missing = [scorer for scorer in made if not scorer.is_running]
    for scorer in missing:
        scorer.start()
    for scorer in missing:
        scorer.wait_until_up()


class Caller:
    """Hands examples to many scorers a few at a time, and again to another when one is lost."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._scorers = [HttpScorer(url) for url in urls]
        self._turns = cycle(range(len(self._scorers)))
        self.lines: dict[str, ScoreLine] = {}
        self.conditions: list[str | None] = []
        self.n_lost = 0

    async def score(
        self, requests: Sequence[ScoreRequest], *, at_once: int = 1_000, seconds: float = 120
    ) -> dict[str, ScoreLine]:
        """Score everything; lines of examples that failed for a while are asked for again."""
        slots = asyncio.Semaphore(at_once)
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(self._score(request, slots))
        return self.lines

    async def _score(self, request: ScoreRequest, slots: asyncio.Semaphore) -> None:
        left = {example.id: example for example in request.examples}
        while left:
            async with slots:
                await self._hand_over(request, left)

    async def _hand_over(self, request: ScoreRequest, left: dict[str, ScoreExample]) -> None:
        scorer = self._scorers[next(self._turns)]
        part = request.model_copy(update={"examples": tuple(left.values())})
        try:
            async for line in scorer.score(part):
                if isinstance(line, ScoreCondition):
                    self.conditions.append(line.condition)
                elif line.score is not None:
                    self.lines[f"{request.job_id}/{line.id}"] = line
                    del left[line.id]
                else:
                    assert line.error is not None
                    assert line.error.retryable, line.error
        except ScorerUnavailable:
            self.n_lost += 1
            await asyncio.sleep(0.05)

    async def aclose(self) -> None:
        for scorer in self._scorers:
            await scorer.aclose()


def job_requests(job: str, n: int, *, chunk: int = 8, **fields: Any) -> list[ScoreRequest]:
    """The requests of a job that scores n examples which no other job has."""
    examples = [
        ScoreExample(id=str(i), input=f"{job} word {i}", outputs=(f"{job} word {i}",))
        for i in range(n)
    ]
    values = {"job_id": job, "target": "fake", "instruction": "Repeat.", **fields}
    return [
        ScoreRequest(examples=tuple(examples[i : i + chunk]), **values) for i in range(0, n, chunk)
    ]


def most_above(times: Sequence[float], per_second: float) -> float:
    """How far the count of any window lies above `per_second` times its length.

    Of a limiter that keeps its limit this is at most its burst, whatever the window.
    """
    most, lowest = 0.0, float("inf")
    for number, at in enumerate(sorted(times)):
        lowest = min(lowest, number - per_second * at)
        most = max(most, number + 1 - per_second * at - lowest)
    return most
