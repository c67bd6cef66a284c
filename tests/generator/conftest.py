from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from instructzero.contracts import ExemplarPair, GenerateRequest
from services.generator.app import create_service
from services.generator.model_folder import ModelFolder, find_model
from services.generator.service import GeneratorService
from services.generator.settings import GeneratorSettings
from services.generator.transformers_engine import TransformersEngine, open_engine
from tests.generator.models import save_model

EXEMPLARS = (
    ExemplarPair(input="sane", output="insane"),
    ExemplarPair(input="hot", output="cold"),
)
SMALL_SETTINGS = GeneratorSettings(max_batch_size=4, threads=1, offline=True)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny random model of a family."""

    @cache
    def folder_of(family: str) -> Path:
        return save_model(tmp_path_factory.mktemp("models") / family, family)

    return folder_of


@pytest.fixture(scope="session")
def make_engine(
    model_folder: Callable[[str], Path],
) -> Iterator[Callable[[str], TransformersEngine]]:
    @cache
    def engine_of(family: str) -> TransformersEngine:
        engine = open_engine(found(model_folder(family)), SMALL_SETTINGS)
        opened.append(engine)
        return engine

    opened: list[TransformersEngine] = []
    yield engine_of
    for engine in opened:
        asyncio.run(engine.aclose())


@pytest.fixture(scope="session")
def service(model_folder: Callable[[str], Path]) -> Iterator[GeneratorService]:
    """A service with the tiny Llama, for tests that leave it as they found it."""
    made = create_service(settings_for(model_folder("llama")))
    yield made
    asyncio.run(made.aclose())


def found(folder: Path) -> ModelFolder:
    return find_model(settings_for(folder))


def settings_for(folder: Path, **changes: Any) -> GeneratorSettings:
    return SMALL_SETTINGS.model_copy(update={"model": str(folder), **changes})


def request_for(n_points: int = 1, **fields: Any) -> GenerateRequest:
    """A request for points spread over the box."""
    projection = {"intrinsic_dim": 3, "n_tokens": 2, **fields.pop("projection", {})}
    d = projection["intrinsic_dim"]
    points = [[((i * 7 + j * 3) % 21 - 10) / 10 for j in range(d)] for i in range(n_points)]
    values = {
        "request_id": "r",
        "exemplars": EXEMPLARS,
        "projection": projection,
        "points": points,
        "max_tokens": 8,
    }
    return GenerateRequest.model_validate({**values, **fields})


@contextlib.asynccontextmanager
async def serve(app: FastAPI) -> AsyncIterator[str]:
    """Serve an app over loopback; gives its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    )
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running
