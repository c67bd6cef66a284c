"""The chart's pods as processes: with the variables and secrets it gives them, a job is done."""

from __future__ import annotations

import pytest

from tests.deploy.conftest import Databases
from tests.faults.system import job_content
from tests.scorer.redis_server import RedisServer

chart_cluster = pytest.importorskip("tests.deploy.chart_cluster", exc_type=ImportError)
pytestmark = pytest.mark.timeout(1500)


def test_the_pods_of_the_chart_do_a_job_and_stop_in_order(
    databases: Databases, redis: RedisServer, tmp_path
):
    cluster = chart_cluster.chart_cluster(
        tmp_path, database_url=databases.create(), redis_url=redis.url
    )
    try:
        cluster.parts["migrate"].run_to_end()
        cluster.start(*chart_cluster.PARTS)
        job_id = cluster.submit(job_content({"calls": 60}, strategy="random"))
        assert cluster.wait_for(job_id)["usage"]["in_doubt_calls"] == 0
        for part in reversed(chart_cluster.PARTS):
            cluster.parts[part].terminate()
    finally:
        cluster.stop()
