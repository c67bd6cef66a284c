"""What is killed under a running job, in an application that `serve run` made of a config file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from services.demo import MODEL_PATH
from tests.e2e.test_run import trials_of
from tests.faults.system import DemoTarget, Process, demo_target, wait_until, write_job
from tests.generator.models import save_model
from tests.generator_cluster.cluster import (
    CONTROLLER,
    ENGINE,
    REPLICA,
    START_SECONDS,
    Cluster,
    needs_vllm,
    serving_cluster,
)
from tests.generator_cluster.hostile import request_body

pytestmark = [needs_vllm, pytest.mark.timeout(900)]
DEMO = f"{REPLICA}generator:model-demo"
WAITING = "generator_unavailable"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    other = save_model(folder / "qwen", "qwen3")
    common = {"device": "cpu", "offline": True}
    models = [
        {"name": "demo", "settings": {"model": str(MODEL_PATH), **common}},
        {"name": "q", "settings": {"model": str(other), "engine": "transformers", **common}},
    ]
    with serving_cluster(folder, models) as cluster:
        yield cluster


class Job(NamedTuple):
    """One run of the same job on the cluster."""

    process: Process
    database: Path

    def n_points(self) -> int:
        return int((self._read("SELECT count(*) FROM points") or [[0]])[0][0])

    def conditions(self) -> str:
        return str(self._read("SELECT conditions FROM jobs"))

    def _read(self, query: str) -> list[Any]:
        if not self.database.exists():
            return []
        with sqlite3.connect(self.database) as connection:
            try:
                return connection.execute(query).fetchall()
            except sqlite3.OperationalError:  # not migrated yet
                return []


class Jobs:
    """Starts the same job again and again."""

    def __init__(self, target: DemoTarget, url: str) -> None:
        self._target = target
        self._url = url
        # Four points a step: the generator is asked again and again until the end.
        strategy = {"name": "random", "options": {"batch": 4}}
        self._content = write_job(target.folder, {"trials": 16}, strategy=strategy)

    def start(self, name: str) -> Job:
        database = self._target.folder / f"{name}.db"
        process = Process(
            "run", str(self._content), "--targets", str(self._target.targets), "--json",
            "--database", str(database), "--generator-url", self._url, folder=self._target.folder,
        )  # fmt: skip
        return Job(process, database)


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    with demo_target(tmp_path_factory.mktemp("jobs"), latency_ms=200) as target:
        yield Jobs(target, cluster.url)


@pytest.fixture(scope="module")
def undisturbed(jobs: Jobs) -> list[Any]:
    job = jobs.start("undisturbed")
    assert job.process.wait(START_SECONDS) == 0, job.process.errors()
    return trials_of(job.database)


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [instruction["text"] for instruction in response.json()["instructions"]]


def test_each_model_of_the_config_answers_to_its_name(cluster: Cluster) -> None:
    listed = httpx.get(f"{cluster.url}/v1/models", timeout=10).json()["data"]
    assert [model["id"] for model in listed] == ["default", "demo", "q"]
    bodies = [request_body(3, model=name) for name in ("default", "demo", "q")]
    default, demo, other = [cluster.post(body) for body in bodies]
    assert texts(default) == texts(demo)
    assert len(texts(other)) == 3
    assert other.json()["fingerprint"] != demo.json()["fingerprint"]
    refused = cluster.post(request_body(model="gpt"))
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_model")
    assert "default and demo and q" in refused.json()["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["engine", "replica"])
def test_a_job_waits_for_what_was_killed_under_it_and_ends_as_if_nothing_had_happened(
    cluster: Cluster, jobs: Jobs, undisturbed: list[Any], victim: str
) -> None:
    before = texts(cluster.post(request_body(100, seed=1)))
    replica = cluster.pids(DEMO)
    job = jobs.start(f"no-{victim}")
    wait_until(lambda: job.n_points() > 4, seconds=90)
    if victim == "engine":
        cluster.kill(ENGINE, below=DEMO)
        wait_until(lambda: WAITING in job.conditions(), seconds=90)
    else:
        cluster.kill(DEMO)
        # What comes between two copies is held by Ray Serve, and the job need not notice.
        wait_until(
            lambda: WAITING in job.conditions() or bool(cluster.pids(DEMO) - replica), seconds=90
        )
    assert not job.process.has_ended
    # The other model does not care.
    assert len(texts(cluster.post(request_body(3, model="q")))) == 3
    assert job.process.wait(START_SECONDS) == 0, job.process.errors()
    assert WAITING not in job.conditions()
    assert trials_of(job.database) == undisturbed
    assert replica.isdisjoint(cluster.pids(DEMO))
    # A copy writes what the one before it wrote.
    after = texts(cluster.post(request_body(100, seed=1)))
    assert sum(one != other for one, other in zip(before, after, strict=True)) <= 1


@pytest.mark.slow
def test_a_job_does_not_notice_that_the_controller_was_killed(
    cluster: Cluster, jobs: Jobs, undisturbed: list[Any]
) -> None:
    job = jobs.start("no-controller")
    wait_until(lambda: job.n_points() > 4, seconds=90)
    killed = cluster.pids(CONTROLLER)
    cluster.kill(CONTROLLER)
    assert not job.process.has_ended
    assert job.process.wait(START_SECONDS) == 0, job.process.errors()
    assert trials_of(job.database) == undisturbed
    wait_until(lambda: bool(cluster.pids(CONTROLLER) - killed), seconds=60)
    cluster.wait_until_ready()
