"""`instructzero run` as a person uses it: a separate process, real HTTP, the bundled model."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.demo.corpus import demo_task
from tests.faults.system import DemoTarget, Process, demo_target, job_content, write_job

INDUCTION = Path(__file__).parents[3] / "shared" / "data" / "instruction_induction"
TASKS = ["antonyms", "sum", "rhymes", "cause_and_effect", "common_concept", "translation_en-es"]
needs_induction = pytest.mark.skipif(
    not (INDUCTION / "induce").is_dir(),
    reason="the paper's task files are not beside this checkout (../shared/data)",
)


def run(
    target: DemoTarget, job: Path, database: str, *options: str, seconds: float = 240
) -> tuple[int, Process]:
    process = Process(
        "run", str(job), "--targets", str(target.targets), "--database", database, "--json",
        *options, folder=target.folder,
    )  # fmt: skip
    return process.wait(seconds), process


def result_of(process: Process) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(process.output.read_text())
    return found


def trials_of(database: Path) -> list[Any]:
    """Every trial as stored: instruction, z, examples and scores, byte for byte."""
    with sqlite3.connect(database) as connection:
        texts = connection.execute("SELECT n, text, trial FROM arms ORDER BY n").fetchall()
        points = connection.execute("SELECT n, z, arm FROM points ORDER BY n").fetchall()
        scores = connection.execute(
            "SELECT split, arm, example, score, answer FROM evaluations"
            " ORDER BY split, arm, example"
        ).fetchall()
    return [texts, points, scores]


@pytest.mark.parametrize("calls", [1, 7, 50, 500])
@pytest.mark.parametrize(
    "faults", [(), ("429=0.07", "500=0.07", "timeout=0.06")], ids=["calm", "faulty"]
)
def test_a_budget_of_calls_bounds_the_requests_that_the_target_sees(
    tmp_path: Path, calls: int, faults: tuple[str, ...]
) -> None:
    options = [part for fault in faults for part in ("--fault", fault)]
    with demo_target(tmp_path, *options, latency_ms=0, timeout_seconds=0.5) as target:
        job = write_job(tmp_path, {"calls": calls}, strategy="default")
        code, process = run(target, job, "jobs.db")
        assert code == 0, process.errors()
        result = result_of(process)
        # A request that was given up before the target read it is charged all the same.
        assert len(target.requests()) <= result["usage"]["calls"] <= calls
        assert faults or len(target.requests()) == result["usage"]["calls"]
        assert len(target.requests()) >= 0.75 * calls - 1


def test_the_same_spec_and_seed_give_the_same_trials_and_another_seed_does_not(
    tmp_path: Path,
) -> None:
    with demo_target(tmp_path, latency_ms=0) as target:
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            job = write_job(tmp_path, {"calls": 150}, seed=seed)
            code, process = run(target, job, f"{name}.db")
            assert code == 0, process.errors()
    same = [trials_of(tmp_path / f"{name}.db") for name in "ab"]
    assert same[0] == same[1]
    assert same[0] != trials_of(tmp_path / "c.db")


def induction_job(folder: Path, path: Path, task: str, **changes: object) -> Path:
    dataset = {"format": "instruction_induction", "path": str(path), "task": task}
    content = job_content({"calls": 80}) | {"task": {"dataset": dataset}} | changes
    job = folder / f"{task}.yaml"
    job.write_text(yaml.safe_dump(content))
    return job


@needs_induction
@pytest.mark.parametrize("task", TASKS)
def test_the_papers_task_files_run_end_to_end(tmp_path: Path, task: str) -> None:
    metric = "f1" if task in {"common_concept", "translation_en-es"} else "exact_match"
    with demo_target(tmp_path, latency_ms=0) as target:
        code, process = run(
            target, induction_job(tmp_path, INDUCTION, task, metric=metric), "jobs.db"
        )
        assert code == 0, process.errors()
        result = result_of(process)
        assert result["status"] == "succeeded"
        assert result["best"]["test"]["n"] > 0
        assert 0 < len(target.requests()) <= 80


def test_a_task_of_the_same_layout_runs_end_to_end(tmp_path: Path) -> None:
    for part, rows in zip(("induce", "execute"), demo_task("plural")[1:], strict=True):
        folder = tmp_path / "data" / part
        folder.mkdir(parents=True)
        examples = {str(i + 1): {"input": x, "output": y} for i, (x, y) in enumerate(rows)}
        (folder / "more_than_one.json").write_text(
            json.dumps({"metadata": {"num_examples": len(rows)}, "examples": examples})
        )
    with demo_target(tmp_path, latency_ms=0) as target:
        job = induction_job(tmp_path, tmp_path / "data", "more_than_one", budget={"calls": 300})
        code, process = run(target, job, "jobs.db")
        assert code == 0, process.errors()
        assert result_of(process)["best"]["test"]["score"] > 0.5


def test_a_key_in_the_environment_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = f"sk-canary-{random.Random(7).getrandbits(64):x}"
    monkeypatch.setenv("CANARY_KEY", canary)
    with demo_target(tmp_path, latency_ms=0) as target:
        registered = yaml.safe_load(target.targets.read_text())
        registered["targets"]["demo"]["api_key"] = {"env": "CANARY_KEY"}
        target.targets.write_text(yaml.safe_dump(registered))
        job = write_job(tmp_path, {"calls": 40})
        code, process = run(target, job, "jobs.db", "--report", "report.html")
        assert code == 0, process.errors()
        missing = yaml.safe_load(job.read_text()) | {"target": canary[:20]}
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(missing))
        assert run(target, tmp_path / "wrong.yaml", "jobs.db")[0] == 2
    (tmp_path / "wrong.yaml").unlink()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"jobs.db", "report.html", "requests.jsonl"} <= {path.name for path in written}
    for path in written:
        assert canary.encode() not in path.read_bytes(), path.name
    assert os.environ["CANARY_KEY"] == canary  # noqa: TID251 - the test's own variable
