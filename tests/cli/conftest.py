from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli import app
from tests.cli.world import CANARY, Folder, World, make_folder, serve_world

Invoke = Callable[..., Result]


@dataclass
class Finished:
    """A folder in which one job ran to its end, and what `run --json` printed."""

    folder: Folder
    out: str
    err: str

    @property
    def job_id(self) -> str:
        return str(json.loads(self.out)["job_id"])

    @property
    def database(self) -> str:
        return str(self.folder.path / "instructzero.db")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder with a job file, and its world's servers running."""
    with serve_world(World()) as world:
        yield make_folder(tmp_path, world)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """One job that ran to its end; nobody may change it."""
    with serve_world(World()) as world:
        folder = make_folder(tmp_path_factory.mktemp("finished"), world)
        done = folder.command("run", "job.yaml", "--json", *folder.connections)
        assert done.returncode == 0, done.stderr
        yield Finished(folder, done.stdout, done.stderr)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Iterator[Invoke]:
    """Run a command in this process, in a given folder."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv("WORLD_KEY", CANARY)

    def run(*arguments: str, folder: Path | None = None, **environment: str) -> Result:
        if folder is not None:
            monkeypatch.chdir(folder)
        return CliRunner().invoke(app, list(arguments), env=environment)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
