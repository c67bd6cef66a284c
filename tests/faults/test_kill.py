"""`kill -9` at random moments: results stay the same, answers are bought once, budgets hold."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.system import (
    HANDED_OVER,
    IN_FLIGHT,
    DemoTarget,
    Process,
    answers,
    comparable,
    demo_target,
    free_port,
    job_content,
    only_job,
    wait_until,
    write_job,
)

TRIALS = {"trials": 24}


def run_once(target: DemoTarget, job: Path, database: Path) -> Process:
    known = only_job(database)
    resume = () if known is None else ("--resume", known)
    return Process(
        "run", str(job), "--targets", str(target.targets), "--database", str(database), "--json",
        *resume, folder=target.folder,
    )  # fmt: skip


def finish(target: DemoTarget, job: Path, database: Path) -> dict[str, Any]:
    process = run_once(target, job, database)
    assert process.wait(240) == 0, process.errors()
    result: dict[str, Any] = json.loads(process.output.read_text())
    return result


def kill_again_and_again(
    target: DemoTarget, job: Path, database: Path, *, kills: int, seed: int
) -> int:
    """Start, kill when a random number of further requests has been seen; return the kills."""
    draw = random.Random(seed)
    done = 0
    while done < kills:
        process = run_once(target, job, database)
        if draw.random() < 0.25:  # somewhere in the start, before the first request
            deadline, goal = time.monotonic() + draw.uniform(0.2, 6.0), 10**9
        else:
            deadline = time.monotonic() + 120
            goal = len(target.requests()) + draw.randint(0, 12)
        while not (process.has_ended or time.monotonic() > deadline):
            if len(target.requests()) > goal:
                break
            time.sleep(0.02)
        if process.has_ended:
            assert process.wait(1) == 0, process.errors()
            return done
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        done += 1
    return done


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with demo_target(folder, latency_ms=0) as target:
        result = finish(target, write_job(folder, TRIALS), folder / "jobs.db")
        assert target.repeats() == 0
        assert result["usage"]["calls"] == len(target.requests())
        return result


def test_a_killed_run_ends_with_the_result_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: dict[str, Any], kills: int
) -> None:
    with demo_target(tmp_path) as target:
        job, database = write_job(tmp_path, TRIALS), tmp_path / "jobs.db"
        done = kill_again_and_again(target, job, database, kills=kills, seed=1)
        result = finish(target, job, database)
        assert done >= kills // 2, "the job ended before it could be killed often enough"
        assert comparable(result) == comparable(undisturbed)
        assert target.repeats() <= done * IN_FLIGHT
        assert target.repeats() <= result["usage"]["in_doubt_calls"]
        assert len(target.requests()) <= result["usage"]["calls"]


def test_a_budget_of_calls_holds_over_kills(tmp_path: Path, kills: int) -> None:
    with demo_target(tmp_path, "--fault", "500=0.1", latency_ms=50) as target:
        job, database = write_job(tmp_path, {"calls": 150}), tmp_path / "jobs.db"
        kill_again_and_again(target, job, database, kills=kills, seed=2)
        result = finish(target, job, database)
        assert result["status"] == "succeeded"
        assert len(target.requests()) <= result["usage"]["calls"] <= 150


def test_a_killed_server_goes_on_with_its_job(
    tmp_path: Path, undisturbed: dict[str, Any], kills: int
) -> None:
    draw = random.Random(3)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with demo_target(tmp_path) as target:

        def serve() -> Process:
            started = Process(
                "serve", "--port", str(port), "--targets", str(target.targets),
                "--database", str(tmp_path / "jobs.db"), folder=tmp_path,
            )  # fmt: skip
            wait_until(lambda: started.has_ended or answers(f"{url}/healthz"))
            assert not started.has_ended, started.errors()
            return started

        server = serve()
        headers = {"Idempotency-Key": "one"}
        created = httpx.post(f"{url}/jobs", json=job_content(TRIALS), headers=headers)
        assert created.status_code == 202, created.text
        where = f"{url}/jobs/{created.json()['id']}"
        for _ in range(kills):
            goal = len(target.requests()) + draw.randint(0, 12)
            wait_until(lambda: len(target.requests()) > goal or is_done(where), seconds=180)  # noqa: B023
            server.kill()
            server = serve()
            again = httpx.post(f"{url}/jobs", json=job_content(TRIALS), headers=headers)
            assert again.json()["id"] == created.json()["id"]
        wait_until(lambda: is_done(where), seconds=240)
        result = httpx.get(f"{where}/result").json()
        server.stop()
        assert comparable(result) == comparable(undisturbed)
        assert target.repeats() <= result["usage"]["in_doubt_calls"] <= kills * HANDED_OVER


def is_done(where: str) -> bool:
    status = httpx.get(where, timeout=10).json()["status"]
    return status in {"succeeded", "failed", "cancelled"}
