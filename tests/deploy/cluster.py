"""The containers of a deployment as plain processes on loopback.

Each gets its container's command, the environment of its image and of the deployment, its files of
secrets, and nothing else; it can import only what its image holds. What differs: names of other
containers become ports of this machine, and each runner and each API has one scorer where a
cluster's name service would spread them.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.compose import ROOT
from tests.deploy.packages import blocked_modules
from tests.faults.system import wait_until

START_SECONDS = 600.0
IN_IMAGE = ROOT / "tests" / "deploy" / "in_image.py"


@dataclass(frozen=True)
class Start:
    """One process to start: a container of a deployment, on this machine."""

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, str]
    grace_seconds: float


def image_environment(image: str) -> dict[str, str]:
    """What the last stage of an image's Dockerfile sets, without its paths."""
    text = (ROOT / "deploy" / "docker" / f"{image}.Dockerfile").read_text()
    stage = re.split(r"^FROM ", text, flags=re.M)[-1]
    found = re.search(r"^ENV (.+?[^\\])$", stage, flags=re.M | re.S)
    assert found is not None
    pairs = dict(pair.split("=", 1) for pair in found[1].replace("\\\n", " ").split())
    return {name: value for name, value in pairs.items() if name not in {"PATH", "HOME"}}


class Part:
    """A container's process: started, stopped in order, started again on the same port."""

    def __init__(self, start: Start, folder: Path, blocked: Path) -> None:
        self.start_data = start
        self._folder = folder / start.name
        self._blocked = blocked
        self._process: subprocess.Popen[bytes] | None = None
        self._n_starts = 0
        secrets = self._folder / "secrets"
        secrets.mkdir(parents=True)
        for name, value in start.secrets.items():
            (secrets / name).write_text(value + "\n")
        self._environment = {
            **image_environment(start.image),
            **start.environment,
            "IZ_SECRETS_DIR": str(secrets),
            "HOME": str(self._folder),
            "PATH": "/usr/bin:/bin",
        }
        ports = [value for key, value in start.environment.items() if key.endswith("PORT")]
        self.url = f"http://127.0.0.1:{ports[0]}" if ports else ""

    def start(self) -> None:
        self._n_starts += 1
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(IN_IMAGE), str(self._blocked), *self.start_data.command],
                env=self._environment, cwd=self._folder, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def log(self) -> Path:
        return self._folder / f"{self._n_starts}.log"

    def wait_until_healthy(self) -> None:
        def is_up() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            try:
                return httpx.get(f"{self.url}/healthz", timeout=2.0).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(is_up, seconds=START_SECONDS)

    def run_to_end(self) -> None:
        self.start()
        assert self._process is not None
        assert self._process.wait(START_SECONDS) == 0, self.log.read_text()[-3000:]

    def terminate(self) -> float:
        """Stop as an engine does: SIGTERM, the grace period, and nothing left to kill."""
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(self.start_data.grace_seconds)
        assert code == 0, self.log.read_text()[-3000:]
        return time.monotonic() - began

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@dataclass
class Cluster:
    """All processes of a deployment, and a client of its API."""

    folder: Path
    key: str
    parts: dict[str, Part] = field(default_factory=dict)
    _blocked: dict[str, Path] = field(default_factory=dict)

    def add(self, start: Start) -> Part:
        if start.image not in self._blocked:
            path = self.folder / f"{start.image}.json"
            path.write_text(json.dumps(blocked_modules(start.image)))
            self._blocked[start.image] = path
        part = self.parts[start.name] = Part(start, self.folder, self._blocked[start.image])
        return part

    def start(self, *names: str) -> None:
        for name in names:
            self.parts[name].start()
        for name in names:
            self.parts[name].wait_until_healthy()

    def stop(self) -> None:
        for part in self.parts.values():
            part.kill()

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        url = f"{self.parts['api'].url}{path}"
        return httpx.request(method, url, headers=headers, timeout=60.0, **more)

    def submit(self, content: Mapping[str, Any]) -> str:
        response = self.call("POST", "/jobs", json=content)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        content: dict[str, Any] = self.call("GET", f"/jobs/{job_id}").json()
        return content

    def wait_for(self, job_id: str, seconds: float = 600.0) -> dict[str, Any]:
        """Wait until a job has ended well."""

        def has_ended() -> bool:
            try:
                job = self.call("GET", f"/jobs/{job_id}", params={"wait": 20}).json()
                return job.get("status") in {"succeeded", "failed", "cancelled"}
            except httpx.HTTPError:  # the API may be on its way up
                return False

        wait_until(has_ended, seconds=seconds)
        job = self.job(job_id)
        assert job["status"] == "succeeded", job
        return job
