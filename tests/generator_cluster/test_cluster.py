"""The whole path: z over HTTP, Ray Serve, vLLM, instruction; and what must not break it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import httpx
import psutil
import pytest

from instructzero.contracts import GenerateRequest, GenerateResponse, InstructionLine
from services.demo import MODEL_PATH
from services.generator.app import create_service
from services.generator.service import GeneratorService
from services.generator.settings import GeneratorSettings
from services.generator.transformers_engine import TransformersEngine
from tests.faults.system import wait_until
from tests.generator_cluster.cluster import (
    ENGINE,
    Cluster,
    needs_vllm,
    running_cluster,
)
from tests.generator_cluster.hostile import hostile_requests, request_body
from tests.generator_cluster.likeness import check_likeness

pytestmark = [needs_vllm, pytest.mark.timeout(900)]
MAX_WAITING = 8
NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster(folder, IZ_GENERATOR_MAX_WAITING=str(MAX_WAITING)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def reference() -> Iterator[GeneratorService]:
    """The transformers engine on the same model."""
    service = create_service(GeneratorSettings(model=str(MODEL_PATH), offline=True))
    yield service
    asyncio.run(service.aclose())


def prompts_of(service: GeneratorService, body: dict[str, Any]) -> list[Any]:
    return service._writer.assemble(GenerateRequest.model_validate(body))


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [instruction["text"] for instruction in response.json()["instructions"]]


def engine_of(service: GeneratorService) -> TransformersEngine:
    engine = service._writer.engine
    assert isinstance(engine, TransformersEngine)
    return engine


def test_the_instructions_are_the_transformers_engines(
    cluster: Cluster, reference: GeneratorService
) -> None:
    body = request_body(200)
    ours = texts(cluster.post(body))
    answer = asyncio.run(reference.generate(GenerateRequest.model_validate(body)))
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
    assert names == ["default", "demo"]
    ready = httpx.get(f"{cluster.url}/readyz")
    assert (ready.status_code, ready.json()["parts"]) == (200, {"demo": "ok"})
    assert httpx.get(f"{cluster.url}/healthz").json() == {"status": "ok"}
    assert texts(cluster.post(request_body(2))) == texts(
        cluster.post(request_body(2) | {"model": "demo"})
    )


def test_a_point_writes_the_same_whatever_it_is_decoded_with(
    cluster: Cluster, reference: GeneratorService
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
    good = request_body(3)
    before = texts(cluster.post(good))
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
            assert texts(client.post("/v1/instructions", json=good)) == before, hostile.kind
        assert client.get("/v1/instructions").status_code == 405
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


def test_lines_come_as_texts_are_finished_and_a_reader_that_leaves_frees_the_engine(
    cluster: Cluster,
) -> None:
    body = request_body(300, seed=6)
    together = texts(cluster.post(body))
    response = cluster.post(body, accept=NDJSON)
    assert response.headers["content-type"].startswith(NDJSON)
    lines = [InstructionLine.model_validate_json(text) for text in response.text.splitlines()]
    answer = GenerateResponse.of(lines, n_points=300)
    assert [each.text for each in answer.instructions] == together
    assert [line.point for line in lines] != list(range(300))  # not one after the other

    long = request_body(1000, seed=4, temperature=2.0, max_tokens=1024)
    with httpx.stream(
        "POST", f"{cluster.url}/v1/instructions", json=long, headers={"accept": NDJSON}, timeout=60
    ) as stream:
        InstructionLine.model_validate_json(next(stream.iter_lines()))
    wait_until(lambda: cluster.metric("ray_vllm_num_requests_running") == 0, seconds=30)
    refused = cluster.post({**body, "model": "another"}, accept=NDJSON)
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_model")


def test_features_are_those_of_the_transformers_engine(
    cluster: Cluster, reference: GeneratorService
) -> None:
    body = request_body(20, seed=7, features=True)
    answer = asyncio.run(reference.generate(GenerateRequest.model_validate(body)))
    ours = GenerateResponse.model_validate_json(cluster.post(body).content)
    for one, other in zip(ours.instructions, answer.instructions, strict=True):
        assert one.features == pytest.approx(other.features, rel=1e-3, abs=1e-3)
        assert one.text == other.text


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
    body = request_body(
        3, exemplars=[{"input": f"w{i}", "output": f"a{i}"} for i in range(50)], max_tokens=2
    )
    for point in body["points"]:
        assert cluster.post({**body, "points": [point], "soft_position": "suffix"}).is_success
    wait_until(lambda: cluster.metric("ray_vllm_prefix_cache_hits_total") > 0, seconds=30)


def test_a_request_is_logged_with_its_id_and_time(cluster: Cluster) -> None:
    assert cluster.post({**request_body(2), "request_id": "find-me"}).is_success

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(text) for text in cluster.log_lines() if '"find-me"' in text]
        return [line for line in lines if line["message"].startswith("wrote 2 instructions")]

    wait_until(lambda: bool(found()), seconds=20)
    (line,) = found()
    assert line["seconds"] > 0
    assert line["level"] == "info"


def cpu_seconds(cluster: Cluster) -> float:
    """Return what the engine has worked, in processes of its own or in one."""
    pids = cluster.pids("VLLM::")
    return float(sum(psutil.Process(pid).cpu_times().user for pid in pids))


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
