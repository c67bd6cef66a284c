"""The schema's migrations: forward under a working system, and what the code expects."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert, inspect, text

from instructzero.errors import InvalidRequest
from services.optimizer import claims, database, store
from services.optimizer.database import (
    current_revision,
    ensure_schema,
    head_revision,
    migrate,
    open_database,
    open_sync_engine,
)
from services.optimizer.tables import Base, JobRow
from tests.databases import new_postgres_database
from tests.optimizer.worlds import make_spec

FIRST = "0001"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    with new_postgres_database(request.getfixturevalue("postgres"), template="template0") as url:
        yield url


def upgrade_to(url: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    engine = open_sync_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def add_old_job(connection: Connection) -> None:
    """Store a job with the columns that the first version had."""
    row = JobRow.of("old", make_spec())
    known = {column["name"] for column in inspect(connection).get_columns("jobs")}
    given = {name: value for name, value in vars(row).items() if name in known}
    connection.execute(insert(JobRow).values(given))


def test_a_job_of_the_first_version_is_claimed_after_every_migration(empty_url: str) -> None:
    upgrade_to(empty_url, FIRST)
    engine = open_sync_engine(empty_url)
    with engine.begin() as connection:
        add_old_job(connection)
    engine.dispose()
    with pytest.raises(InvalidRequest, match="run `instructzero migrate`"):
        ensure_schema(empty_url, embedded=False)
    assert migrate(empty_url) == migrate(empty_url) == current_revision(empty_url)

    async def take() -> str | None:
        opened = open_database(empty_url)
        found = await store.transact(
            opened.writes, lambda s: claims.claim_job(s, runner_id="r", lease_seconds=60.0)
        )
        await opened.close()
        return None if found is None else found.job_id

    assert asyncio.run(take()) == "old"


def test_what_the_migrations_make_is_what_the_code_expects(empty_url: str) -> None:
    migrate(empty_url)
    engine = open_sync_engine(empty_url)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_a_schema_of_a_newer_version_is_not_to_be_migrated(empty_url: str) -> None:
    migrate(empty_url)
    engine = open_sync_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(InvalidRequest, match="newer than this version"):
        ensure_schema(empty_url, embedded=False)
    assert head_revision() != "9999"
