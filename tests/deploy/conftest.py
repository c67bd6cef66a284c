from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from tests.databases import postgres
from tests.scorer.redis_server import RedisServer

__all__ = ["postgres"]


def execute(server_url: str, statement: str) -> None:
    url = make_url(server_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


class Databases:
    """Makes empty databases on a test's Postgres server."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url

    def create(self) -> str:
        name = f"deploy_{uuid.uuid4().hex[:12]}"
        execute(self._server_url, f"CREATE DATABASE {name}")
        return make_url(self._server_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def databases(postgres: str) -> Databases:
    return Databases(postgres)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder, is_durable=True)
    server.start()
    yield server
    server.stop()
