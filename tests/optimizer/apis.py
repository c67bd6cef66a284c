"""The API on a real database, with a runner for those tests that need finished jobs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from services.embedded import check_metric
from services.optimizer.app import create_app
from services.optimizer.database import Database, open_database
from services.optimizer.intake import ApiDeps
from services.optimizer.job_run import LoopDeps
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings
from tests.optimizer.worlds import PlainGenerator, PlainScorer, make_spec

PROBLEM = "application/problem+json"


class ListingGenerator(PlainGenerator):
    """A generator that says which models it serves."""

    async def models(self) -> tuple[str, ...] | None:
        """Return the models it serves."""
        return ("default", "other")


class Api:
    """A database, the API on it, and a runner on the same database."""

    def __init__(self, database: Database, database_url: str, **settings: Any) -> None:
        self.database = database
        self.settings = Settings(database_url=database_url, **settings)  # type: ignore[arg-type]
        self.scorer = PlainScorer()
        self.generator = ListingGenerator()
        self.app: FastAPI = create_app(
            ApiDeps(
                database=database,
                scorer=self.scorer,
                generator=self.generator,
                settings=self.settings,
                check_metric=check_metric,
                ready=self._ready,
            )
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://api", timeout=60
        )

    async def _ready(self) -> Mapping[str, str]:
        return {"database": "ok"}

    async def create(self, **changes: Any) -> dict[str, Any]:
        """Create a job and return it."""
        response = await self.http.post("/jobs", json=body(**changes))
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    async def run(self, job_id: str) -> None:
        """Claim a job and run it until it leaves `running`."""
        runner = Runner(LoopDeps(self.database, self.generator, self.scorer, self.settings))
        assert await runner.run_one(job_id)
        runner.close()

    async def finished(self, **changes: Any) -> str:
        """Run a new job to its end and return its id."""
        job_id: str = (await self.create(**changes))["id"]
        await self.run(job_id)
        return job_id

    async def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a successful GET."""
        response = await self.http.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    async def count(self) -> int:
        """Return how many jobs are stored."""
        return len((await self.get("/jobs", limit=200))["data"])


def body(**changes: Any) -> dict[str, Any]:
    """Return a small valid job spec as JSON."""
    return make_spec(**changes).model_dump(mode="json", exclude_defaults=True)


def problem(response: httpx.Response) -> dict[str, Any]:
    """Return a problem document, checking its form."""
    assert 400 <= response.status_code < 500, response.text
    assert response.headers["content-type"] == PROBLEM
    document: dict[str, Any] = response.json()
    assert document["status"] == response.status_code
    assert document["code"]
    assert document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    return document


@contextmanager
def serving(database_url: str, *, port: int = 0, **settings: Any) -> Iterator[str]:
    """Serve the API with a runner on a loopback port, in a thread with a loop of its own."""
    started = threading.Event()
    found: list[tuple[uvicorn.Server, str]] = []
    thread = threading.Thread(
        target=lambda: asyncio.run(_serve(database_url, port, settings, started, found))
    )
    thread.start()
    try:
        assert started.wait(30)
        yield found[0][1]
    finally:
        found[0][0].should_exit = True
        thread.join(30)


async def _serve(
    database_url: str,
    port: int,
    settings: dict[str, Any],
    started: threading.Event,
    found: list[tuple[uvicorn.Server, str]],
) -> None:
    database = open_database(database_url)
    api = Api(database, database_url, **settings)
    config = uvicorn.Config(
        api.app, host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    runner = Runner(LoopDeps(database, api.generator, api.scorer, api.settings))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(runner.run())
        serving = group.create_task(server.serve())
        while not server.started and not serving.done():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        found.append((server, f"http://127.0.0.1:{address[1]}"))
        started.set()
        await serving
        runner.drain()
        await running
    await api.http.aclose()
    await database.close()
