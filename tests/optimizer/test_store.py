"""Leases, fencing and the ledger, on real databases."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import text, update

from instructzero.contracts import JobStatus, ScoreLine, TokenUsage
from instructzero.errors import LeaseLost
from services.optimizer import claims, store
from services.optimizer.database import Database, open_database, open_sync_engine
from services.optimizer.heartbeat import Heartbeat
from services.optimizer.jobs import Cost
from services.optimizer.ledger import Ledger, Signals
from services.optimizer.store import Claim
from services.optimizer.tables import ArmRow, JobRow
from tests.optimizer.worlds import make_spec


async def queue(database: Database, job_id: str = "job_1", calls: int = 100) -> None:
    """Store a queued job with one arm."""
    spec = make_spec(budget={"calls": calls})
    async with database.writes.begin() as session:
        session.add(JobRow.of(job_id, spec))
        await session.flush()
        session.add(ArmRow(job_id=job_id, n=0, text="a", source="given", step=0))


async def claim(database: Database, runner: str, lease_seconds: float) -> Claim | None:
    """Claim the oldest claimable job."""
    return await store.transact(
        database.writes,
        lambda s: claims.claim_job(s, runner_id=runner, lease_seconds=lease_seconds),
    )


async def claimed(database: Database, runner: str, lease_seconds: float) -> Claim:
    """Claim a job that must be there."""
    found = await claim(database, runner, lease_seconds)
    assert found is not None
    return found


async def finish(database: Database, owner: Claim, to: JobStatus) -> None:
    """End a job."""
    await store.transact(database.writes, lambda s: store.move_job(s, owner, to))


async def row_of(database: Database, job_id: str = "job_1") -> JobRow:
    """Return a job's row."""
    async with database.reads() as session:
        row = await session.get(JobRow, job_id)
    assert row is not None
    return row


async def test_a_runner_whose_lease_expired_cannot_finish_the_job(database: Database) -> None:
    await queue(database)
    stale = await claimed(database, "runner-a", 0.0)
    await asyncio.sleep(0.01)
    owner = await claimed(database, "runner-b", 60.0)
    with pytest.raises(LeaseLost):
        await finish(database, stale, JobStatus.FAILED)
    with pytest.raises(LeaseLost):
        await store.transact(database.writes, lambda s: store.guard(s, stale))
    await finish(database, owner, JobStatus.SUCCEEDED)
    with pytest.raises(LeaseLost):
        await finish(database, owner, JobStatus.FAILED)


async def test_a_live_lease_is_not_claimed(database: Database) -> None:
    await queue(database)
    await claimed(database, "runner-a", 60.0)
    assert await claim(database, "runner-b", 60.0) is None


async def test_many_runners_claim_each_job_once(database: Database) -> None:
    for number in range(20):
        await queue(database, f"job_{number:02}")
    found = await asyncio.gather(*(claim(database, f"r{n}", 60.0) for n in range(40)))  # noqa: TID251
    ids = [one.job_id for one in found if one is not None]
    assert len(ids) == len(set(ids))
    while (one := await claim(database, "late", 60.0)) is not None:
        ids.append(one.job_id)
    assert sorted(ids) == [f"job_{number:02}" for number in range(20)]


async def test_a_job_of_another_algorithm_version_is_left_alone(database: Database) -> None:
    await queue(database)
    async with database.writes.begin() as session:
        await session.execute(update(JobRow).values(algo_version=999))
    assert await claim(database, "runner-a", 60.0) is None


def ledger_of(database: Database, owner: Claim, first: int = 0) -> Ledger:
    """Return a ledger of a claimed job."""
    return Ledger(database, owner, Signals(), next_handover=first)


async def test_reservations_never_pass_the_budget(database: Database) -> None:
    await queue(database, calls=10)
    ledger = ledger_of(database, await claimed(database, "a", 60.0))
    granted = await asyncio.gather(  # noqa: TID251
        *(
            ledger.reserve(step=0, arm=0, wanted=4, one=Cost(1), keep=Cost(calls=1))
            for _ in range(5)
        )
    )
    assert sum(one.n for one in granted if one is not None) == 9
    assert (await row_of(database)).reserved_calls == 9


async def test_an_answer_is_charged_once_and_the_rest_given_back(database: Database) -> None:
    await queue(database)
    ledger = ledger_of(database, await claimed(database, "a", 60.0))
    handover = await ledger.reserve(step=0, arm=0, wanted=4, one=Cost(1, 50), keep=Cost())
    assert handover is not None
    line = ScoreLine(
        id="0",
        answer="x",
        score=1.0,
        calls=2,
        failed_calls=1,
        usage=TokenUsage(prompt_tokens=9, completion_tokens=1),
    )
    for _ in range(2):
        await ledger.record(handover, line, step=0, split="validation", arm=0, example=0)
    await ledger.close(handover)
    row = await row_of(database)
    assert (row.calls, row.failed_calls, row.reserved_calls, row.n_evaluations) == (2, 1, 0, 1)
    assert (row.prompt_tokens, row.reserved_tokens, row.in_doubt_calls) == (9, 0, 0)


async def test_an_answer_that_nobody_waits_for_is_stored_and_leaves_the_reservation(
    database: Database,
) -> None:
    await queue(database)
    ledger = ledger_of(database, await claimed(database, "a", 60.0))
    handover = await ledger.reserve(step=0, arm=0, wanted=4, one=Cost(2, 51, 0.5), keep=Cost())
    assert handover is not None
    line = ScoreLine(id="0", answer="x", score=1.0, calls=3)
    stored = ledger.record(handover, line, step=0, split="validation", arm=0, example=0)
    async with asyncio.timeout(10):
        assert await stored
    row = await row_of(database)
    assert (row.calls, row.reserved_calls, row.reserved_tokens) == (3, 5, 128)
    assert row.reserved_usd == pytest.approx(1.25)
    await ledger.close(handover, is_in_doubt=True)
    row = await row_of(database)
    assert (row.calls, row.reserved_calls, row.reserved_tokens) == (8, 0, 0)
    assert (row.in_doubt_calls, row.in_doubt_tokens) == (5, 128)
    assert (row.reserved_usd, row.in_doubt_usd) == pytest.approx((0.0, 1.25))


async def test_what_a_dead_runner_had_in_flight_is_charged_in_doubt(database: Database) -> None:
    await queue(database)
    dead = await claimed(database, "a", 0.0)
    ledger = ledger_of(database, dead)
    handover = await ledger.reserve(step=0, arm=0, wanted=4, one=Cost(1, 50), keep=Cost())
    assert handover is not None
    line = ScoreLine(id="0", answer="x", score=1.0, calls=1)
    await ledger.record(handover, line, step=0, split="validation", arm=0, example=0)
    await asyncio.sleep(0.01)
    owner = await claimed(database, "b", 60.0)
    lost = await store.transact(database.writes, lambda s: store.charge_calls_in_doubt(s, owner))
    row = await row_of(database)
    assert lost == 3
    assert (row.calls, row.in_doubt_calls, row.reserved_calls) == (4, 3, 0)
    assert (row.in_doubt_tokens, row.reserved_tokens) == (150, 0)
    with pytest.raises(LeaseLost):
        await ledger.record(handover, line, step=0, split="validation", arm=0, example=1)


async def test_the_heartbeat_beats_while_the_event_loop_is_busy(
    database: Database, database_url: str
) -> None:
    await queue(database)
    owner = await claimed(database, "a", 0.6)
    engine = open_sync_engine(database_url)
    lost: list[bool] = []
    heartbeat = Heartbeat(
        engine,
        owner,
        Signals(),
        lease_seconds=0.6,
        every_seconds=0.1,
        on_lost=lambda: lost.append(True),
    )
    heartbeat.start()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        sum(range(2000))  # a fit that never yields to the event loop
    assert await claim(database, "b", 60.0) is None
    await heartbeat.stop()
    engine.dispose()
    assert not lost


async def test_a_heartbeat_that_lost_its_lease_says_so(
    database: Database, database_url: str
) -> None:
    await queue(database)
    stale = await claimed(database, "a", 0.0)
    await asyncio.sleep(0.01)
    await claimed(database, "b", 60.0)
    engine = open_sync_engine(database_url)
    lost = asyncio.Event()
    loop = asyncio.get_running_loop()
    heartbeat = Heartbeat(
        engine,
        stale,
        Signals(),
        lease_seconds=0.3,
        every_seconds=0.05,
        on_lost=lambda: loop.call_soon_threadsafe(lost.set),
    )
    heartbeat.start()
    async with asyncio.timeout(5):
        await lost.wait()
    await heartbeat.stop()
    engine.dispose()


async def test_what_a_thread_gives_back_after_the_end_is_closed(postgres_url: str) -> None:
    database = open_database(postgres_url)
    with database.thread_writes() as session:
        session.execute(text("SELECT 1"))
        given = session.connection().connection.dbapi_connection
        assert given is not None
        await database.close()
        assert not given.closed  # type: ignore[attr-defined]
    assert given.closed  # type: ignore[attr-defined]
