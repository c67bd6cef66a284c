"""A rolling upgrade: runners of two versions together, a migration in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from services.optimizer.database import head_revision, migrate
from tests.cli.world import World, job_content, serve_world
from tests.deploy.compose import ROOT
from tests.deploy.conftest import Databases
from tests.deploy.versions import Program, next_version
from tests.faults.system import wait_until

pytestmark = pytest.mark.timeout(1200)
N_JOBS = 20
GRACE_SECONDS = 120.0
SLOW_SECONDS = 10.0
"""What a call takes until the new version is there: no job ends before."""


class Rollout:
    """An API and a scorer of version N, and runners of either version."""

    def __init__(self, folder: Path, database: str, world: World, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        targets = folder / "targets.yaml"
        target = {"base_url": f"{world.url}/v1", "model": "m", "limits": {"in_flight": 16}}
        targets.write_text(yaml.safe_dump({"targets": {"world": target}}))
        self._common = {"IZ_DATABASE": database, "IZ_GENERATOR_URL": world.url}
        scorer = self.start(ROOT, "scorer", port_variable="IZ_SCORER_PORT", IZ_TARGETS=str(targets))
        self._common["IZ_SCORER_URL"] = scorer.url
        self.api = self.start(ROOT, "serve", "--no-runner", port_variable="IZ_PORT")

    def start(self, tree: Path, *arguments: str, **more: Any) -> Program:
        program = Program(tree, self.folder, *arguments, **{**self._common, **more})
        self._stack.callback(program.kill)
        return program

    def runner(self, tree: Path) -> Program:
        return self.start(
            tree, "runner", port_variable="IZ_RUNNER_PORT", IZ_OPTIMIZER_JOBS_AT_ONCE=str(N_JOBS)
        )

    def jobs(self) -> list[dict[str, Any]]:
        response = httpx.get(f"{self.api.url}/jobs", params={"limit": 100}, timeout=60)
        return list(response.json()["data"])


def claimed_by(runner: Program) -> float:
    page = httpx.get(f"{runner.url}/metrics", timeout=30).text
    found = re.search(r"^instructzero_jobs_claimed_total (\S+)$", page, flags=re.M)
    assert found is not None
    return float(found[1])


@pytest.fixture
def rollout(databases: Databases, tmp_path: Path) -> Iterator[tuple[Rollout, World]]:
    database = databases.create()
    migrate(database)
    with serve_world(World(latency_seconds=SLOW_SECONDS)) as world, ExitStack() as stack:
        yield Rollout(tmp_path, database, world, stack), world


def test_twenty_jobs_live_through_a_rolling_upgrade(rollout, tmp_path):
    system, world = rollout
    newer = next_version(tmp_path, head_revision())
    old = system.runner(ROOT)
    for part in (system.api, old):
        part.wait_until_healthy()
    for seed in range(N_JOBS):
        body = job_content(seed=seed, budget={"calls": 100})
        assert httpx.post(f"{system.api.url}/jobs", json=body, timeout=60).status_code == 202
    wait_until(lambda: claimed_by(old) == N_JOBS and world.requests > N_JOBS, seconds=300)

    migration = system.start(newer, "migrate")
    assert migration.end() == 0
    new = system.runner(newer)
    new.wait_until_healthy()
    body = job_content(seed=N_JOBS, budget={"calls": 100})
    assert httpx.post(f"{system.api.url}/jobs", json=body, timeout=60).status_code == 202
    wait_until(lambda: claimed_by(new) > 0, seconds=120)  # the old one has no room: both work now
    world.latency_seconds = 0.02
    old.terminate(GRACE_SECONDS)

    wait_until(lambda: all(job["status"] == "succeeded" for job in system.jobs()), seconds=600)
    jobs = system.jobs()
    assert len(jobs) == N_JOBS + 1
    assert sum(job["usage"]["in_doubt_calls"] for job in jobs) == 0
    assert world.repeats == 0
    assert all(job["usage"]["calls"] <= 100 for job in jobs)


def test_an_old_process_that_starts_on_the_newer_schema_says_so(rollout, tmp_path):
    system, _ = rollout
    newer = next_version(tmp_path, head_revision())
    assert system.start(newer, "migrate").end() == 0
    late = system.runner(ROOT)
    assert late.end() == 2
    assert "schema is at 9999" in late.said()
