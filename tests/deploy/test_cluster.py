"""The compose file's containers as processes: a job, and SIGTERM to each part under load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.cluster import Cluster
from tests.deploy.compose_cluster import compose_cluster
from tests.deploy.conftest import Databases
from tests.deploy.test_monitoring import meters
from tests.faults.system import job_content, wait_until
from tests.scorer.redis_server import RedisServer

pytestmark = pytest.mark.timeout(1500)
SERVING = ("scorer-1", "scorer-2", "generator", "demo-target", "api", "runner-1", "runner-2")
PATIENCE = 600.0
STOPPED = ("scorer-1", "generator", "demo-target", "api", "runner-1")


@pytest.fixture(scope="module")
def cluster(
    databases: Databases, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    cluster = compose_cluster(
        tmp_path_factory.mktemp("compose"), database_url=databases.create(), redis_url=redis.url
    )
    try:
        cluster.parts["migrate"].run_to_end()
        cluster.start(*SERVING)
        yield cluster
    finally:
        cluster.stop()


def job(calls: int, seed: int) -> dict[str, Any]:
    """A small job whose search costs next to nothing, and which finds no other's answers."""
    return job_content({"calls": calls}, seed=seed, strategy="random", tenant=f"tenant-{seed}")


def test_a_job_is_run_to_its_result(cluster):
    job = cluster.wait_for(cluster.submit(job_content({"calls": 60})))
    assert job["usage"]["calls"] <= 60
    assert job["usage"]["in_doubt_calls"] == 0
    result = cluster.call("GET", f"/jobs/{job['id']}/result").json()
    assert result["best"]["instruction"]


@pytest.mark.parametrize(
    ("part", "path"), [("api", "/jobs"), ("scorer-1", "/v1/targets"), ("generator", "/v1/models")]
)
def test_without_a_key_or_a_token_nothing_is_served(cluster, part, path):
    assert httpx.get(f"{cluster.parts[part].url}{path}").status_code == 401


def test_every_figure_that_alerts_and_dashboard_ask_for_is_told(cluster):
    told: set[str] = set()
    routes: set[str] = set()
    for name in ("api", "runner-1", "runner-2", "scorer-1", "scorer-2", "generator"):
        headers = {"authorization": f"Bearer {cluster.key}"} if name == "api" else {}
        page = httpx.get(f"{cluster.parts[name].url}/metrics", headers=headers)
        assert page.status_code == 200
        families = list(text_string_to_metric_families(page.text))
        told |= {family.name for family in families}
        routes |= {
            sample.labels["route"]
            for family in families
            for sample in family.samples
            if "route" in sample.labels
        }
    missing = {name for name in meters() if name not in told}
    assert not missing
    assert {"/jobs", "/jobs/{job_id}", "/v1/scores", "/v1/instructions", "/healthz"} <= routes
    assert not any("job_" in route.replace("{job_id}", "") for route in routes)


@pytest.mark.parametrize("name", STOPPED)
def test_a_part_that_is_told_to_stop_drains_and_costs_no_job_anything(cluster, name):
    seed = 10 * STOPPED.index(name)
    ids = [cluster.submit(job(60, seed + n)) for n in (1, 2)]
    wait_until(
        lambda: all(cluster.job(each)["usage"]["calls"] > 10 for each in ids), seconds=PATIENCE
    )
    cluster.parts[name].terminate()
    cluster.start(name)
    for job_id in ids:
        usage = cluster.wait_for(job_id, PATIENCE)["usage"]
        assert usage["in_doubt_calls"] == 0
        assert usage["calls"] <= 60


def test_every_line_of_a_log_is_one_object_and_names_its_job(cluster):
    named = 0
    for name in ("scorer-1", "scorer-2", "generator", "api", "runner-1", "runner-2"):
        lines = cluster.parts[name].log.with_name("1.log").read_text().splitlines()
        assert lines
        for line in map(json.loads, lines):
            assert {"time", "level", "logger", "message"} <= set(line)
            named += "job_id" in line
    assert named
