"""A runner as a process of its own, forked from a server that has the imports done already."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections import deque
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from typing import Any

import psutil

from services.embedded import DatabaseCache
from services.optimizer import failpoints
from services.optimizer.database import open_database
from services.optimizer.job_run import LoopDeps
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings
from services.scorer.scoring import ScorerPool
from services.scorer.targets import Targets
from tests.optimizer.worlds import PlainGenerator, until

IN_FLIGHT = 4
HANDED_OVER = 6
"""What a runner has with the scorer at once, and a kill can leave in doubt: decision 0020."""
TARGET = "world"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Task:
    """What a runner process works on, and where it comes to harm."""

    database_url: str
    target_url: str
    fail_points: tuple[str, ...] = ()
    lease_seconds: float = 120.0


def targets_at(url: str) -> Targets:
    connection: dict[str, Any] = {
        "base_url": url,
        "model": "fake",
        "limits": {"in_flight": IN_FLIGHT},
        "timeout_seconds": 5,
    }
    return Targets.of({"targets": {TARGET: connection}})


def run_until_terminated(task: Task, is_ready: Event) -> None:
    """The process's work: claim and run jobs until SIGTERM."""
    failpoints.arm(task.fail_points)
    asyncio.run(_run(task, is_ready))


async def _run(task: Task, is_ready: Event) -> None:
    settings = Settings(
        database_url=task.database_url,  # type: ignore[arg-type]
        lease_seconds=task.lease_seconds,
        poll_seconds=0.05,
    )
    database = open_database(task.database_url)
    cache = DatabaseCache(database, ttl_seconds=3600)
    scorer = ScorerPool(targets_at(task.target_url), cache=cache)
    generator = PlainGenerator(requests=deque(maxlen=1))  # its memory is measured
    runner = Runner(LoopDeps(database, generator, scorer, settings))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.drain)
    is_ready.set()
    await runner.run()
    await scorer.aclose()
    await database.close()


class RunnerProcess:
    """One runner, which may be armed to kill or freeze itself."""

    def __init__(self, task: Task) -> None:
        self._is_ready = _context.Event()
        self._process: ForkServerProcess = _context.Process(
            target=run_until_terminated, args=(task, self._is_ready), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    async def killed_itself(self, seconds: float = 120.0) -> None:
        await until(lambda: not self._process.is_alive(), seconds=seconds)
        assert self._process.exitcode == -signal.SIGKILL, self._process.exitcode

    async def froze_itself(self, seconds: float = 120.0) -> None:
        measured = psutil.Process(self.pid)
        await until(lambda: measured.status() == psutil.STATUS_STOPPED, seconds=seconds)

    def kill(self) -> None:
        if self._process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        self._process.join()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def end(self, seconds: float = 120.0) -> None:
        """Drain it; it must end in order."""
        await until(self._is_ready.is_set, seconds=seconds)
        os.kill(self.pid, signal.SIGTERM)
        await until(lambda: not self._process.is_alive(), seconds=seconds)
        assert self._process.exitcode == 0, self._process.exitcode
