from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from services.optimizer.database import Database
from tests.optimizer.apis import Api, serving


@pytest.fixture
async def api(database: Database, database_url: str) -> AsyncIterator[Api]:
    """The API in this process, without a socket; once on each kind of database."""
    api = Api(database, database_url)
    yield api
    await api.http.aclose()


@pytest.fixture
def server(sqlite_url: str) -> Iterator[str]:
    """The address of a real server with a runner, on SQLite."""
    with serving(sqlite_url) as url:
        yield url
