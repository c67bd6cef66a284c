"""Several copies of a model, and models of other families, side by side on Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from instructzero.contracts import GenerateRequest, GenerateResponse
from services.demo import MODEL_PATH
from services.generator.app import create_app, create_service
from services.generator.settings import GeneratorSettings
from services.generator.transformers_engine import TransformersEngine
from tests.generator.conftest import serve
from tests.generator_cluster.cluster import REPLICA, Cluster, needs_vllm, serving_cluster
from tests.generator_cluster.families import save_family
from tests.generator_cluster.hostile import request_body
from tests.generator_cluster.likeness import check_likeness

pytestmark = [needs_vllm, pytest.mark.timeout(900)]
FAMILIES = {"qwen": "qwen3", "gemma": "gemma3"}
N_POINTS, N_PARTS = 500, 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("models")
    families = {name: save_family(made / name, family) for name, family in FAMILIES.items()}
    return {"demo": MODEL_PATH, **families}


@pytest.fixture(scope="module")
def cluster(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    common = {"device": "cpu", "offline": True, "cpu_cache_gib": 0.25}
    models: list[dict[str, Any]] = [
        {"name": name, "settings": {"model": str(folder), **common}, "cpus": 0.25}
        for name, folder in folders.items()
    ]
    models[0]["replicas"] = {"min": 2, "max": 2}
    with serving_cluster(tmp_path_factory.mktemp("cluster"), models) as cluster:
        yield cluster


def write_on_both_copies(cluster: Cluster, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Send parts, several at a time, until each was written by both copies; gives their texts."""
    size = N_POINTS // N_PARTS
    parts = [body["points"][start : start + size] for start in range(0, N_POINTS, size)]
    seen: list[dict[Path, list[str]]] = [{} for _ in parts]
    names = (f"copies-{number}" for number in count())

    def write(number: int) -> None:
        name = next(names)
        response = cluster.post({**body, "request_id": name, "points": parts[number]})
        assert response.status_code == 200, response.text
        texts = [instruction["text"] for instruction in response.json()["instructions"]]
        seen[number].setdefault(cluster.copy_that_wrote(name), texts)

    with ThreadPoolExecutor(N_PARTS) as pool:
        for _ in range(30):
            if left := [number for number, copies in enumerate(seen) if len(copies) < 2]:
                list(pool.map(write, left))
    for copies in seen:
        one, other = copies.values()
        yield from zip(one, other, strict=True)


def test_a_point_writes_the_same_on_every_copy(cluster: Cluster) -> None:
    assert len(cluster.pids(f"{REPLICA}generator:model-demo")) == 2
    body = request_body(N_POINTS, seed=1)
    pairs = list(write_on_both_copies(cluster, body))
    assert len(set(pairs)) > 20
    reference = create_service(GeneratorSettings(model=str(MODEL_PATH), offline=True))
    engine = reference._writer.engine
    assert isinstance(engine, TransformersEngine)
    prompts = reference._writer.assemble(GenerateRequest.model_validate(body))
    check_likeness(engine, prompts, pairs, share=0.99, gap=1e-3)
    asyncio.run(reference.aclose())


@pytest.mark.parametrize("name", FAMILIES)
def test_another_family_goes_the_same_way_on_both_engines(
    cluster: Cluster, folders: dict[str, Path], name: str
) -> None:
    body = request_body(60, seed=5, max_tokens=12)
    ours = GenerateResponse.model_validate_json(cluster.post({**body, "model": name}).content)
    settings = GeneratorSettings(model=str(folders[name]), offline=True)
    service = create_service(settings)

    async def ask_transformers() -> GenerateResponse:
        app = create_app(settings, service)
        async with serve(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            response = await client.post("/v1/instructions", json=body)
        return GenerateResponse.model_validate_json(response.content)

    theirs = asyncio.run(ask_transformers())
    assert ours.fingerprint != theirs.fingerprint
    assert len({each.text for each in ours.instructions}) > 5
    engine = service._writer.engine
    assert isinstance(engine, TransformersEngine)
    pairs = zip(theirs.instructions, ours.instructions, strict=True)
    check_likeness(
        engine,
        service._writer.assemble(GenerateRequest.model_validate(body)),
        [(one.text, other.text) for one, other in pairs],
        share=0.95,
        gap=1e-2,
    )
    asyncio.run(service.aclose())
