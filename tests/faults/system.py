"""The product as separate processes on loopback, for tests that kill them."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from services.demo.corpus import demo_task

COMMAND = str(Path(sys.executable).parent / "instructzero")
IN_FLIGHT = 4
HANDED_OVER = 6
"""What a runner has with the scorer at once, and a kill can leave in doubt: decision 0020."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


class Process:
    """One command of the product."""

    def __init__(self, *arguments: str, folder: Path, command: str = COMMAND) -> None:
        self.output = folder / f"{arguments[0]}-{time.monotonic_ns()}.out"
        with self.output.open("wb") as out, self.output.with_suffix(".err").open("wb") as err:
            self._process = subprocess.Popen(
                [command, *arguments], stdout=out, stderr=err, cwd=folder
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, seconds: float = 20) -> None:
        if not self.has_ended:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def errors(self) -> str:
        return self.output.with_suffix(".err").read_text()


class DemoTarget:
    """The demo target with a request log, and the targets file that names it."""

    def __init__(
        self, folder: Path, *options: str, latency_ms: int = 100, timeout_seconds: float = 5
    ) -> None:
        self.folder = folder
        self.log = folder / "requests.jsonl"
        self.port = free_port()
        self._process = Process(
            "demo-target", "--port", str(self.port), "--latency-ms", str(latency_ms),
            "--log", str(self.log), *options, folder=folder,
        )  # fmt: skip
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}/v1/models"))
        self.targets = folder / "targets.yaml"
        connection = {
            "base_url": f"http://127.0.0.1:{self.port}/v1",
            "model": "demo",
            "limits": {"in_flight": IN_FLIGHT},
            "sampling": {"temperature": 0, "max_tokens": 16},
            "timeout_seconds": timeout_seconds,
        }
        self.targets.write_text(yaml.safe_dump({"targets": {"demo": connection}}))

    def stop(self) -> None:
        self._process.stop()

    def requests(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def repeats(self) -> int:
        """How many requests were sent beyond the first of each."""
        seen = Counter(line["messages_sha256"] for line in self.requests())
        return sum(seen.values()) - len(seen)


@contextmanager
def demo_target(
    folder: Path, *options: str, latency_ms: int = 100, timeout_seconds: float = 5
) -> Iterator[DemoTarget]:
    folder.mkdir(parents=True, exist_ok=True)
    target = DemoTarget(folder, *options, latency_ms=latency_ms, timeout_seconds=timeout_seconds)
    try:
        yield target
    finally:
        target.stop()


def job_content(budget: dict[str, float], **changes: object) -> dict[str, Any]:
    exemplars, validation, test = demo_task("antonym")
    pairs = {
        name: [{"input": text, "output": [answer]} for text, answer in rows]
        for name, rows in (("exemplars", exemplars), ("validation", validation[:20]))
    }
    held_out = [{"input": text, "output": [answer]} for text, answer in test[:20]]
    content: dict[str, Any] = {
        "name": "antonyms",
        "task": {**pairs, "test": held_out, "baseline": "Say a different word."},
        "target": "demo",
        "budget": budget,
        "strategy": {"name": "default", "options": {"pool": 60, "chunk": 30}},
    }
    return content | changes


def write_job(folder: Path, budget: dict[str, float], **changes: object) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job_content(budget, **changes)))
    return path


def only_job(database: Path) -> str | None:
    """The id of the one job in an embedded database; None before it was stored."""
    if not database.exists():
        return None
    with sqlite3.connect(database) as connection:
        try:
            found = connection.execute("SELECT id FROM jobs").fetchall()
        except sqlite3.OperationalError:  # not migrated yet
            return None
    assert len(found) <= 1
    return found[0][0] if found else None


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """A result document without what may differ between two runs: ids, times and usage."""
    return {k: v for k, v in result.items() if k not in {"job_id", "usage"} and "_at" not in k}
