"""The whole path: z over HTTP, Ray Serve, vLLM, instruction; and what must not break it."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from instructzero.contracts import GenerateRequest
from services.demo import MODEL_PATH
from services.generator.app import create_service
from services.generator.settings import GeneratorSettings
from services.generator.transformers_engine import TransformersEngine
from services.generator.writing import InstructionWriter
from tests.e2e.test_run import trials_of
from tests.faults.system import Process, demo_target, wait_until, write_job
from tests.generator_cluster.cluster import (
    CONTROLLER,
    ENGINE,
    REPLICA,
    Cluster,
    needs_vllm,
    running_cluster,
)
from tests.generator_cluster.hostile import hostile_requests, request_body
from tests.generator_cluster.likeness import check_likeness

pytestmark = [needs_vllm, pytest.mark.timeout(900)]
MAX_WAITING = 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster(folder, IZ_GENERATOR_MAX_WAITING=str(MAX_WAITING)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def reference() -> Iterator[InstructionWriter]:
    """The transformers engine on the same model."""
    service = create_service(GeneratorSettings(model=str(MODEL_PATH), offline=True))
    yield service._writer
    asyncio.run(service.aclose())


def prompts_of(writer: InstructionWriter, body: dict[str, Any]) -> list[Any]:
    return writer.assemble(GenerateRequest.model_validate(body))


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [instruction["text"] for instruction in response.json()["instructions"]]


def engine_of(writer: InstructionWriter) -> TransformersEngine:
    assert isinstance(writer.engine, TransformersEngine)
    return writer.engine


def test_the_instructions_are_the_transformers_engines(
    cluster: Cluster, reference: InstructionWriter
) -> None:
    body = request_body(200)
    ours = texts(cluster.post(body))
    answer = asyncio.run(reference.write(GenerateRequest.model_validate(body)))
    theirs = [instruction.text for instruction in answer.instructions]
    assert len(set(theirs)) > 20
    check_likeness(
        engine_of(reference),
        prompts_of(reference, body),
        zip(theirs, ours, strict=True),
        share=0.95,
        gap=1e-2,
    )


def test_the_models_and_the_health_are_told(cluster: Cluster) -> None:
    names = [model["id"] for model in httpx.get(f"{cluster.url}/v1/models").json()["data"]]
    assert names == ["default", "model"]
    ready = httpx.get(f"{cluster.url}/readyz")
    assert (ready.status_code, ready.json()["parts"]) == (200, {"model": "ok"})
    assert httpx.get(f"{cluster.url}/healthz").json() == {"status": "ok"}
    assert texts(cluster.post(request_body(2))) == texts(
        cluster.post(request_body(2) | {"model": "model"})
    )


def test_a_point_writes_the_same_whatever_it_is_decoded_with(
    cluster: Cluster, reference: InstructionWriter
) -> None:
    body = request_body(500, seed=1)
    together = texts(cluster.post(body))
    order = list(range(500))
    random.Random(2).shuffle(order)
    parts = [order[start : start + 37] for start in range(0, 500, 37)]

    def ask(part: list[int]) -> list[str]:
        return texts(cluster.post({**body, "points": [body["points"][i] for i in part]}))

    with ThreadPoolExecutor(4) as pool:
        apart = dict(zip(order, chain.from_iterable(pool.map(ask, parts)), strict=True))
    check_likeness(
        engine_of(reference),
        prompts_of(reference, body),
        [(together[i], apart[i]) for i in range(500)],
        share=0.99,
        gap=1e-3,
    )


def test_sampling_follows_the_seed_alone(cluster: Cluster) -> None:
    body = request_body(12, seed=3, temperature=1.2)
    first = texts(cluster.post(body))
    assert texts(cluster.post(body)) == first
    assert texts(cluster.post({**body, "points": body["points"][5:6]})) == first[5:6]
    assert texts(cluster.post({**body, "seed": 1})) != first


def test_hostile_requests_are_refused_and_the_engine_lives(cluster: Cluster) -> None:
    engine = cluster.pids(ENGINE)
    assert len(engine) == 1
    before = texts(cluster.post(request_body(3)))
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        for hostile in hostile_requests(200):
            response = client.post(
                "/v1/instructions",
                content=hostile.content,
                headers={"content-type": hostile.content_type},
            )
            assert 400 <= response.status_code < 500, hostile.kind
            assert response.headers["content-type"] == "application/problem+json", hostile.kind
            problem = response.json()
            assert problem["status"] == response.status_code
            assert problem["detail"], hostile.kind
            assert response.headers.get_list("x-request-id") == [problem["request_id"]]
        assert client.get("/v1/instructions").status_code == 405
    assert texts(cluster.post(request_body(3))) == before
    assert cluster.pids(ENGINE) == engine


def test_a_client_that_goes_away_frees_the_engine(cluster: Cluster) -> None:
    body = request_body(1000, seed=4, temperature=2.0, max_tokens=1024)
    with pytest.raises(httpx.ReadTimeout):
        cluster.post(body, timeout=1.0)
    started = time.monotonic()
    assert texts(cluster.post(request_body(1)))
    # A thousand texts of a thousand tokens would have kept it busy for minutes.
    assert time.monotonic() - started < 20
    wait_until(lambda: cluster.metric("ray_vllm_num_requests_running") == 0, seconds=30)


def test_a_deadline_ends_the_work(cluster: Cluster) -> None:
    body = request_body(1000, seed=5, temperature=2.0, max_tokens=1024, deadline_seconds=0.5)
    response = cluster.post(body)
    assert (response.status_code, response.json()["code"]) == (503, "deadline_exceeded")
    assert texts(cluster.post(request_body(1)))


def test_more_requests_than_may_wait_are_told_when_to_come_again(cluster: Cluster) -> None:
    bodies = [request_body(100, seed=10 + i, max_tokens=64) for i in range(3 * MAX_WAITING)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        responses = list(pool.map(cluster.post, bodies))
    refused = [response for response in responses if response.status_code == 429]
    assert refused
    for response in refused:
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["code"] == "overloaded"
    others = [response for response in responses if response.status_code != 429]
    assert [r.text for r in others if r.status_code != 200] == []


def test_the_node_exports_what_an_operator_watches(cluster: Cluster) -> None:
    assert cluster.metric("ray_vllm_generation_tokens_total") > 1000
    assert cluster.metric("ray_vllm_prompt_tokens_total") > 1000
    assert cluster.metric("ray_vllm_prefix_cache_queries_total") > 0


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Callable[[str], Process], list[Any]]]:
    """Give what starts a job on the cluster, and the trials of one that nothing happened to."""
    folder = tmp_path_factory.mktemp("jobs")
    with demo_target(folder, latency_ms=0) as target:
        job = write_job(folder, {"calls": 400})

        def start(name: str) -> Process:
            return Process(
                "run", str(job), "--targets", str(target.targets), "--database", f"{name}.db",
                "--generator-url", cluster.url, "--json", folder=folder,
            )  # fmt: skip

        process = start("undisturbed")
        assert process.wait(120) == 0, process.errors()
        yield start, trials_of(folder / "undisturbed.db")


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(ENGINE, CONTROLLER), (REPLICA + "generator:model",)])
def test_a_job_waits_for_a_generator_that_was_killed_and_ends_as_if_nothing_had_happened(
    cluster: Cluster,
    undisturbed: tuple[Callable[[str], Process], list[Any]],
    victims: tuple[str, ...],
) -> None:
    start, expected = undisturbed
    for victim in victims:
        cluster.kill(victim)
    process = start(f"disturbed-{len(victims)}")
    database = process.output.parent / f"disturbed-{len(victims)}.db"
    wait_until(lambda: "generator_unavailable" in conditions(database), seconds=90)
    assert process.wait(240) == 0, process.errors()
    assert trials_of(database) == expected
    cluster.wait_until_ready()


def cpu_seconds(cluster: Cluster) -> float:
    # An earlier test may have killed it.
    wait_until(lambda: len(cluster.pids("VLLM::Worker")) == 1, seconds=90)
    (worker,) = cluster.pids("VLLM::Worker")
    return float(psutil.Process(worker).cpu_times().user)


def conditions(database: Path) -> str:
    if not database.exists():
        return ""
    with sqlite3.connect(database) as connection:
        try:
            return str(connection.execute("SELECT conditions FROM jobs").fetchall())
        except sqlite3.OperationalError:  # not migrated yet
            return ""


def test_what_was_accepted_is_finished_before_the_end(cluster: Cluster) -> None:
    body = request_body(1000, seed=8)
    before = cpu_seconds(cluster)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cluster.post, body)
        wait_until(lambda: cpu_seconds(cluster) > before + 0.3, seconds=30)
        cluster.process.stop(seconds=60)
        assert len(texts(asked.result())) == 1000
    assert cluster.process.wait(1) == 0
    assert "Traceback" not in cluster.process.errors()
