"""How a command reaches its jobs: a server's API over HTTP, or the same API in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from instructzero.client import AsyncClient
from instructzero.errors import InvalidRequest
from services.settings import CommandSettings

if TYPE_CHECKING:
    from services.embedded import Options, Parts

DEFAULT_DATABASE = "instructzero.db"
IN_PROCESS = "http://in-process"


@dataclass(frozen=True)
class Place:
    """Where jobs are: a server, or a database."""

    url: str | None = None
    database: str | None = None
    targets: Path | None = None

    def options(self) -> list[str]:
        """Return the options that lead to this place again."""
        if self.url is not None:
            return ["--url", self.url]
        return [] if self.database in (None, DEFAULT_DATABASE) else ["--database", self.database]


@dataclass(frozen=True)
class Local:
    """This process as server and client at once."""

    parts: Parts
    client: AsyncClient
    serves_demo: bool


@asynccontextmanager
async def open_place(place: Place, *, may_create: bool = False) -> AsyncIterator[AsyncClient]:
    """Open a client for a place.

    Args:
        place: a server's URL, or a database; with neither, the file of this folder.
        may_create: a SQLite file that is not there is made.

    Raises:
        InvalidRequest: both were given, or there is no such file.
    """
    if place.url is not None:
        if place.database is not None:
            raise InvalidRequest("give --url or --database, not both")
        settings = CommandSettings()
        key = settings.api_key.get_secret_value() if settings.api_key else None
        async with AsyncClient(place.url, api_key=key) as client:
            yield client
        return
    from services.embedded import Options

    database = place.database or DEFAULT_DATABASE
    if not may_create:
        _refuse_missing(database)
    async with open_local(Options(database, targets=place.targets), with_runner=False) as local:
        yield local.client


def _refuse_missing(database: str) -> None:
    from services.optimizer.database import sqlite_path

    path = sqlite_path(database)
    if path is not None and not path.exists():
        raise InvalidRequest(
            f"{path} does not exist: no job was run here; give --database FILE, "
            "or --url http://127.0.0.1:8080 for a running server"
        )


@asynccontextmanager
async def open_local(options: Options, *, with_runner: bool) -> AsyncIterator[Local]:
    """Open the all-in-one process; with a runner and no targets file it serves the demo target too.

    Raises:
        Conflict: another process runs jobs on this SQLite file.
        InvalidRequest: a wrong targets file, database or model.
    """
    from services.embedded import create_api, open_parts

    async with AsyncExitStack() as stack:
        serves_demo = with_runner and options.targets is None and options.scorer_url is None
        if serves_demo:
            from services.demo.target import TargetOptions, serve_target

            url = await stack.enter_async_context(serve_target(TargetOptions(), "127.0.0.1", 0))
            options = replace(options, demo_target_url=url)
        parts = await stack.enter_async_context(open_parts(options, with_runner=with_runner))
        # Keys guard the port; whoever runs this process has the database anyway.
        open_settings = parts.settings.model_copy(update={"api_key_hashes": ()})
        transport = httpx.ASGITransport(app=create_api(replace(parts, settings=open_settings)))
        client = AsyncClient(IN_PROCESS, transport=transport)
        stack.push_async_callback(client.aclose)
        yield Local(parts, client, serves_demo)
