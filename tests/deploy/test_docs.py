"""Every fenced block of the documentation is carried out, read, or marked with why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from services.optimizer.database import migrate
from tests.cli.world import World, job_content, serve_world
from tests.deploy.compose import ROOT
from tests.deploy.fences import COMMANDS, Fence, fences, pages
from tests.deploy.versions import Program
from tests.faults.system import wait_until

pytestmark = pytest.mark.timeout(900)
FENCES = [fence for page in pages() for fence in fences(page)]
ELSEWHERE = {"backup", "restore"}
"""What tests/deploy/test_backup.py carries out."""
WALKS = {fence.mark: fence for fence in FENCES if fence.mark and fence.mark.startswith("run: ")}


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: fence.name)
def test_a_block_is_carried_out_or_says_why_not_and_the_rest_can_be_read(fence: Fence):
    if fence.language in COMMANDS:
        assert fence.mark is not None, "mark it: <!-- run: NAME --> or <!-- not run: why -->"
        why = fence.mark.removeprefix("not run: ")
        assert fence.mark.startswith("run: ") or len(why) > 20
    elif fence.language == "yaml":
        yaml.safe_load(fence.text)
    elif fence.language == "json":
        read_json(fence.text)
    elif fence.language == "python":
        compile(fence.text, fence.name, "exec")
    else:
        assert fence.language in {"http", "text"}, "name the block's language"


def read_json(text: str) -> None:
    """Read one value after another: a stream's lines are several."""
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        _, end = decoder.raw_decode(rest)
        rest = rest[end:].lstrip()


class Walk:
    """A folder with a job and targets, and a server, as somebody has who reads the pages."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder = folder
        target = {"base_url": f"{world.url}/v1", "model": "m", "limits": {"in_flight": 8}}
        targets = yaml.safe_dump({"targets": {"world": target}})
        (folder / "targets.yaml").write_text(targets)
        content = job_content(budget={"calls": 80})
        (folder / "job.yaml").write_text(yaml.safe_dump(content))
        (folder / "job.json").write_text(json.dumps(content))
        database = f"sqlite:///{folder / 'served.db'}"
        migrate(database)
        self._generator = world.url
        self.server = Program(
            ROOT, folder, "serve", port_variable="IZ_PORT", IZ_DATABASE=database,
            IZ_TARGETS=str(folder / "targets.yaml"), IZ_GENERATOR_URL=world.url,
        )  # fmt: skip
        self.server.wait_until_healthy()
        self.job_id = self._finished_job(content)

    def _finished_job(self, content: dict[str, object]) -> str:
        job_id = str(httpx.post(f"{self.server.url}/jobs", json=content).json()["id"])
        place = f"{self.server.url}/jobs/{job_id}"
        wait_until(lambda: httpx.get(place).json()["status"] == "succeeded", seconds=240)
        return job_id

    def here(self, text: str) -> str:
        """The text with this walk's server and job."""
        for there in ("http://127.0.0.1:8080", "http://localhost:8080", "localhost:8080"):
            text = text.replace(there, self.server.url)
        return text.replace("JOB_ID", self.job_id).replace(".venv/bin/", "")

    def run(self, text: str) -> str:
        """Carry out commands; `make serve` is what has been started already."""
        lines = [line for line in self.here(text).splitlines() if not line.startswith("make serve")]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # noqa: TID251
        done = subprocess.run(
            ["bash", "-euc", "\n".join(lines)],
            cwd=self.folder,
            env={
                "PATH": path, "HOME": str(self.folder), "id": self.job_id,
                "IZ_GENERATOR_URL": self._generator, "OMP_NUM_THREADS": "1",
            },
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    with serve_world(World()) as world, ExitStack() as stack:
        walk = Walk(tmp_path_factory.mktemp("walk"), world)
        stack.callback(walk.server.kill)
        yield walk


def test_every_block_that_says_it_is_run_is_run():
    assert set(WALKS) == {f"run: {name}" for name in {"job", "service", "rest", *ELSEWHERE}}


def test_the_readme_runs_a_job(walk):
    walk.run(WALKS["run: job"].text)
    assert list((walk.folder / "runs").glob("*.html"))


@pytest.mark.parametrize("name", ["service", "rest"])
def test_what_is_asked_of_a_server_is_answered_without_a_problem(walk, name):
    said = walk.run(WALKS[f"run: {name}"].text)
    assert walk.job_id in said
    assert "application/problem+json" not in said
    assert '"request_id"' not in said


@pytest.mark.parametrize(
    "fence", [each for each in FENCES if each.language == "python"], ids=lambda fence: fence.name
)
def test_python_of_the_pages_runs(walk, fence, capsys):
    spec = job_content(budget={"calls": 80})
    program = compile(walk.here(fence.text), fence.name, "exec")
    exec(program, {"spec": spec, "show": lambda _: None})  # noqa: S102 - our own pages
    assert "Rule" in capsys.readouterr().out


def test_the_sizes_of_the_guide_are_those_that_were_measured():
    results = ROOT / "benchmarks" / "results"
    costs = json.loads((results / "unit_costs.json").read_text())
    scale = json.loads((results / "scale.json").read_text())
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert f"| {costs['scorer_cpu_seconds_per_call'] * 1000:.1f} ms |" in guide
    assert f"| {costs['runner_cpu_seconds_per_job']:.1f} s |" in guide
    assert f"| {costs['database_bytes_per_job'] / 1e6:.2f} MB |" in guide
    units = {part["name"]: part["units"] for part in scale["parts"]}
    assert f"{units['runner']} runners' cores, {units['scorer']} scorers'" in guide
    assert f"{units['generator']} GPUs" in guide
    assert f"Paid calls cost {scale['usd_per_day']['paid calls']:,.0f} dollars a day" in guide
