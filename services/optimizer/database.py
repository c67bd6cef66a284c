"""Engines and sessions for SQLite and Postgres, and the schema's migrations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from instructzero.errors import InvalidRequest, StoreUnavailable

BUSY_SECONDS = 30
POSTGRES = {
    "connect_timeout": "10",
    "tcp_user_timeout": "30000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "options": "-c idle_in_transaction_session_timeout=30000",
}
"""So that a server that vanished is noticed within half a minute, and a process that froze within a
transaction locks nobody out for longer; the URL may say otherwise."""
ISOLATION = "READ COMMITTED"
"""Row locks order our writes; a stricter default of the server would only make them collide."""
SessionMaker = async_sessionmaker[AsyncSession]
BlockingSessionMaker = sessionmaker[Session]
T = TypeVar("T")


@dataclass(frozen=True)
class Database:
    """A connection pool; `reads` never takes SQLite's write lock, `writes` takes it at once.

    The other two are for a thread that does a whole transaction without the event loop: what is
    done for every paid call costs a third of the processor time so.
    """

    engine: AsyncEngine
    reads: SessionMaker
    writes: SessionMaker
    thread_reads: BlockingSessionMaker
    thread_writes: BlockingSessionMaker

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        close_engine(self.thread_writes.kw["bind"])


def parse_url(raw: str) -> URL:
    """Return the URL with our drivers; a plain path means a SQLite file.

    Raises:
        InvalidRequest: neither SQLite nor Postgres.
    """
    if "://" not in raw:
        raw = f"sqlite:///{raw}"
    try:
        url = make_url(raw)
    except ArgumentError as error:
        raise InvalidRequest("the database URL cannot be read") from error
    backend = url.get_backend_name()
    if backend == "sqlite":
        return url.set(drivername="sqlite+aiosqlite")
    if backend in {"postgresql", "postgres"}:
        return url.set(drivername="postgresql+psycopg", query={**POSTGRES, **url.query})
    raise InvalidRequest("the database must be sqlite:///FILE or postgresql://...")


def sqlite_path(raw: str) -> Path | None:
    """Return the file of a SQLite URL, None for Postgres."""
    url = parse_url(raw)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        kind = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {kind}")


def open_database(raw: str, *, pool_size: int = 10) -> Database:
    """Open a pool; no connection is made yet."""
    url = parse_url(raw)
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, connect_args={"timeout": BUSY_SECONDS})
        _prepare_sqlite(engine.sync_engine)
        writer = engine.execution_options(sqlite_begin="IMMEDIATE")
    else:
        engine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_timeout=30,
            isolation_level=ISOLATION,
        )
        writer = engine
    blocking = open_sync_engine(raw)
    reader = blocking.execution_options(sqlite_begin="DEFERRED")
    return Database(
        engine=engine,
        reads=async_sessionmaker(engine, expire_on_commit=False),
        writes=async_sessionmaker(writer, expire_on_commit=False),
        thread_reads=sessionmaker(reader, expire_on_commit=False),
        thread_writes=sessionmaker(blocking, expire_on_commit=False),
    )


def open_sync_engine(raw: str) -> Engine:
    """Return an engine for threads (heartbeat, migrations), with connections of its own."""
    url = parse_url(raw)
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url.set(drivername="sqlite"), connect_args={"timeout": BUSY_SECONDS}
        ).execution_options(sqlite_begin="IMMEDIATE")
        _prepare_sqlite(engine)
        return engine
    return create_engine(url, pool_size=2, pool_pre_ping=True, isolation_level=ISOLATION)


def close_engine(engine: Engine) -> None:
    """Close every connection, and each that a thread still uses as soon as it gives it back."""

    @event.listens_for(engine.pool, "checkin")
    def close(_: object, record: ConnectionPoolEntry) -> None:
        record.invalidate()  # it would come back to a pool that nobody closes any more

    engine.dispose()


def _alembic(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """Return the schema revision this code needs."""
    head = ScriptDirectory.from_config(_alembic()).get_current_head()
    if head is None:
        raise StoreUnavailable("this installation holds no migrations: install it again")
    return head


def is_known(revision: str) -> bool:
    """Return whether this code holds the migration to a revision."""
    known = {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}
    return revision in known


def _with_engine(raw: str, work: Callable[[Connection], T]) -> T:
    engine = open_sync_engine(raw)
    try:
        with engine.begin() as connection:
            return work(connection)
    except SQLAlchemyError as error:
        raise StoreUnavailable(f"the database does not answer ({type(error).__name__})") from error
    finally:
        engine.dispose()


def migrate(raw: str) -> str:
    """Bring the schema to this code's revision; concurrent callers wait for one another."""

    def upgrade(connection: Connection) -> str:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7305194127)"))
        command.upgrade(_alembic(connection), "head")
        return head_revision()

    if (path := sqlite_path(raw)) is not None and path.name:
        path.parent.mkdir(parents=True, exist_ok=True)
    return _with_engine(raw, upgrade)


def current_revision(raw: str) -> str | None:
    """Return the database's schema revision; None for an empty database."""
    return _with_engine(
        raw, lambda connection: MigrationContext.configure(connection).get_current_revision()
    )


def is_empty(raw: str) -> bool:
    """Return whether the database holds no table yet."""
    return _with_engine(raw, lambda connection: not inspect(connection).get_table_names())


def ensure_schema(raw: str, *, embedded: bool) -> None:
    """Create or upgrade an embedded database; check a shared one and create it only if empty.

    Raises:
        InvalidRequest: a shared database has another revision; says which command to run.
    """
    if embedded or is_empty(raw):
        migrate(raw)
        return
    found = current_revision(raw)
    if found is not None and not is_known(found):
        raise InvalidRequest(
            f"the database schema is at {found}, which is newer than this version: "
            "start the version that migrated it"
        )
    if found != head_revision():
        raise InvalidRequest(
            f"the database schema is at {found or 'no revision'}, this version needs "
            f"{head_revision()}: run `instructzero migrate`"
        )
