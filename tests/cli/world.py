"""The command against small servers on loopback: a generator and a target that answer at once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

COMMAND = str(Path(sys.executable).parent / "instructzero")
CANARY = "sk-canary-0123456789"


def chance(*parts: object) -> float:
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
    return int(digest[:12], 16) / 16**12


@dataclass
class World:
    """What the servers were asked, and how they behave."""

    latency_seconds: float = 0.0
    key: str | None = None
    requests: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """One of 40 texts a point; better texts have higher numbers."""
        texts = [f"Rule {int(chance(*point) * 40)}." for point in body["points"]]
        answers = [{"text": text, "tokens": 3, "finish_reason": "stop"} for text in texts]
        return 200, {"fingerprint": "world-1", "instructions": answers}

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Right with the instruction's quality as probability, fixed per example."""
        with self.lock:
            self.requests += 1
        time.sleep(self.latency_seconds)
        text = body["messages"][-1]["content"]
        instruction = text.removeprefix("Instruction: ").partition("\n")[0]
        number = instruction.removeprefix("Rule ").removesuffix(".")
        quality = (int(number) + 1) / 40 if number.isdigit() else 0.3
        with self.lock:
            self.answered[text] += 1
        message = {"role": "assistant", "content": "b" if chance(text) < quality else "c"}
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21},
        }

    @property
    def repeats(self) -> int:
        return sum(self.answered.values()) - len(self.answered)


def _handler(world: World) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if world.key and self.headers.get("authorization") != f"Bearer {world.key}":
                self._send(401, {"error": {"message": "no", "code": "invalid_api_key"}})
            else:
                names = [{"id": "m"}, {"id": "default"}]
                self._send(200, {"object": "list", "data": names})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            is_writer = self.path.endswith("/instructions")
            self._send(*(world.write(body) if is_writer else world.answer(body)))

        def _send(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def serve_world(world: World) -> Iterator[World]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(world))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    world.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield world
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def job_content(**changes: object) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": "world",
        "task": {
            "exemplars": [{"input": "a", "output": "b"}],
            "validation": [{"input": f"v{n}", "output": "b"} for n in range(12)],
            "test": [{"input": f"t{n}", "output": "b"} for n in range(24)],
            "baseline": "Do the task.",
        },
        "target": "world",
        "budget": {"calls": 200},
        "strategy": "random",
        "labels": {"team": "red"},
    }
    return content | changes


@dataclass
class Folder:
    """A folder with a job and the targets file of a world, where commands run."""

    path: Path
    world: World

    @property
    def job(self) -> Path:
        return self.path / "job.yaml"

    @property
    def connections(self) -> list[str]:
        return [
            "--targets",
            str(self.path / "targets.yaml"),
            "--generator-url",
            self.world.url,
        ]

    def write_job(self, **changes: object) -> Path:
        self.job.write_text(yaml.safe_dump(job_content(**changes)))
        return self.job

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.path,
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *arguments],
            cwd=self.path,
            env=clean_environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IZ_")}  # noqa: TID251 - a child process needs one
    return {**kept, "WORLD_KEY": CANARY, **more}


def make_folder(path: Path, world: World) -> Folder:
    connection = {
        "base_url": f"{world.url}/v1",
        "model": "m",
        "api_key": {"env": "WORLD_KEY"},
        "limits": {"in_flight": 4},
        "price": {"input_per_million": 0.15, "output_per_million": 0.6},
        "sampling": {"temperature": 0, "max_tokens": 16},
    }
    (path / "targets.yaml").write_text(yaml.safe_dump({"targets": {"world": connection}}))
    folder = Folder(path, world)
    folder.write_job()
    return folder


def wait_until(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
