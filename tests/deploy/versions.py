"""This version and one that comes after it, as processes side by side."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.deploy.compose import ROOT
from tests.faults.system import answers, free_port, wait_until

MIGRATION = '''"""A column and an index that older versions do not know."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both."""
    op.add_column("jobs", sa.Column("note", sa.Text(), nullable=True))
    op.create_index("ix_jobs_note", "jobs", ["note"])
'''
PROGRAM = "from services.cli import main; main()"


def next_version(folder: Path, head: str) -> Path:
    """A copy of the product with one migration more."""
    tree = folder / "next"
    for package in ("instructzero", "services"):
        shutil.copytree(
            ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    versions = tree / "services" / "optimizer" / "migrations" / "versions"
    (versions / "9999_next.py").write_text(
        MIGRATION.format(revision="9999", down_revision=head), encoding="utf-8"
    )
    return tree


class Program:
    """A command of one version, on a port of its own if it serves."""

    def __init__(
        self, tree: Path, folder: Path, *arguments: str, port_variable: str = "", **variables: str
    ) -> None:
        self.port = free_port()
        self._log = folder / f"{arguments[0]}-{self.port}.log"
        environment = {
            "PATH": os.environ["PATH"],  # noqa: TID251 - a child process needs one
            "PYTHONPATH": str(tree),
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        if port_variable:
            environment[port_variable] = str(self.port)
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments],
                env=environment, cwd=folder, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_until_healthy(self) -> None:
        def is_up() -> bool:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            return answers(f"{self.url}/healthz")

        wait_until(is_up, seconds=240)

    def end(self, seconds: float = 240) -> int:
        return self._process.wait(seconds)

    def terminate(self, seconds: float) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(seconds) == 0, self._log.read_text()[-3000:]

    def said(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
