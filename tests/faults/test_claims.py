"""Who may run and write a job: claims at once, fair order, lost leases, clocks, versions."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update

from instructzero.contracts import JobStatus, ScoreLine
from instructzero.errors import Conflict, InstructZeroError, LeaseLost
from services.optimizer import claims, control, store
from services.optimizer.database import Database, open_database, open_sync_engine
from services.optimizer.heartbeat import Heartbeat
from services.optimizer.jobs import Connections, Cost
from services.optimizer.ledger import Ledger, Signals
from services.optimizer.store import Claim
from services.optimizer.tables import ArmRow, EventRow, JobRow, PointRow
from tests.faults.world import add_job, open_world, run_undisturbed, spec_for
from tests.optimizer.worlds import PlainScorer

N_JOBS = 1_000
MINUTE = 60.0


async def claim(
    database: Database, runner: str = "r", lease_seconds: float = MINUTE
) -> Claim | None:
    return await store.transact(
        database.writes,
        lambda s: claims.claim_job(s, runner_id=runner, lease_seconds=lease_seconds),
    )


async def claimed(database: Database, runner: str = "r", lease_seconds: float = MINUTE) -> Claim:
    found = await claim(database, runner, lease_seconds)
    assert found is not None
    return found


async def add_many(database: Database, n: int, tenant: str = "default") -> None:
    spec = spec_for(tenant=tenant)
    shared = {
        "name": spec.name,
        "tenant": tenant,
        "spec": spec.model_dump(mode="json"),
        "spec_hash": spec.spec_hash(),
        "seed": spec.seed,
    }
    rows = [{**shared, "id": f"{tenant}_{number:05}"} for number in range(n)]
    async with database.writes.begin() as session:
        await session.execute(insert(JobRow), rows)


async def run_out(database: Database) -> None:
    """Bring the end of every lease forward."""
    async with database.writes.begin() as session:
        await session.execute(update(JobRow).values(lease_expires_at=0))


async def test_two_runners_that_claim_at_once_never_get_the_same_job(postgres_url: str) -> None:
    databases = [open_database(postgres_url) for _ in range(2)]
    await add_many(databases[0], N_JOBS)
    found: Counter[str] = Counter()
    shares: Counter[int] = Counter()

    async def take_all(number: int) -> None:
        while (one := await claim(databases[number], f"runner-{number}", 3_600.0)) is not None:
            found[one.job_id] += 1
            shares[number] += 1
            assert one.lease_token == 1

    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(take_all(number))
    assert len(found) == N_JOBS
    assert set(found.values()) == {1}
    assert min(shares.values()) > 0
    for database in databases:
        await database.close()


async def test_tenants_take_turns_however_long_their_queues(database: Database) -> None:
    await add_many(database, 30, "large")
    await add_many(database, 3, "small")
    await add_many(database, 3, "tiny")
    order = [(await claimed(database)).spec.tenant for _ in range(12)]
    assert Counter(order[:9]) == {"large": 3, "small": 3, "tiny": 3}
    assert order[9:] == ["large"] * 3


async def test_a_job_that_lost_its_runner_goes_before_those_that_never_had_one(
    database: Database,
) -> None:
    await add_many(database, 3)
    first = await claimed(database, lease_seconds=0.0)
    again = await claimed(database)
    assert (again.job_id, again.lease_token) == (first.job_id, 2)


async def give_up(session: Any, owner: Claim, status: JobStatus) -> None:
    await store.move_job(session, owner, status)


def ledger(database: Database, owner: Claim) -> Ledger:
    return Ledger(database, owner, Signals(), next_handover=7)


Write = Callable[[Database, Claim], Coroutine[Any, Any, object]]


def in_session(work: Callable[[Any, Claim], Any]) -> Write:
    async def write(database: Database, owner: Claim) -> None:
        await store.transact(database.writes, lambda session: work(session, owner))

    return write


WRITES: dict[str, Write] = {
    "charge what is in doubt": in_session(store.charge_calls_in_doubt),
    "add given arms": in_session(lambda s, c: store.add_given_arms(s, c, [("a", "given")])),
    "add the empty arm": in_session(store.add_empty_arm),
    "journal a decision": in_session(
        lambda s, c: store.journal_decision(
            s, c, step=0, kind="search", decision={}, snapshot=None, new_trials=[0]
        )
    ),
    "store texts": in_session(
        lambda s, c: store.store_texts(
            s,
            c,
            fingerprint="other",
            points=[PointRow(job_id=c.job_id, n=0, step=0, z=[0.0], text="a")],
            new_arms=[ArmRow(job_id=c.job_id, n=9, text="b", source="soft_prompt", step=0)],
        )
    ),
    "finish a step": in_session(lambda s, c: store.finish_step(s, c, step=0, best={})),
    **{
        f"become {status}": in_session(lambda s, c, status=status: give_up(s, c, status))  # type: ignore[misc]
        for status in ("queued", "paused", "succeeded", "failed", "cancelled")
    },
    "reserve": lambda d, c: ledger(d, c).reserve(step=0, arm=0, wanted=1, one=Cost(1), keep=Cost()),
    "refresh": lambda d, c: ledger(d, c).refresh(),
    "show a condition": lambda d, c: ledger(d, c).set_condition("x", is_on=True),
}


@pytest.mark.parametrize("name", WRITES)
async def test_a_runner_that_lost_its_lease_cannot(database: Database, name: str) -> None:
    await add_job(database, "job_1")
    stale = await claimed(database, "runner-a", lease_seconds=0.0)
    await claimed(database, "runner-a")  # even one of the same name
    before = await everything(database)
    with pytest.raises(LeaseLost):
        await WRITES[name](database, stale)
    assert await everything(database) == before


async def test_an_answer_that_comes_after_the_lease_is_lost_is_not_stored(
    database: Database,
) -> None:
    await add_job(database, "job_1")
    stale = await claimed(database, lease_seconds=0.0)
    async with database.writes.begin() as session:
        session.add(ArmRow(job_id="job_1", n=0, text="a", source="given", step=0))
    held = ledger(database, stale)
    handover = await held.reserve(step=0, arm=0, wanted=4, one=Cost(1), keep=Cost())
    assert handover is not None
    owner = await claimed(database)
    before = await everything(database)
    line = ScoreLine(id="0", answer="x", score=1.0, calls=1)
    for late in (
        held.record(handover, line, step=0, split="validation", arm=0, example=0),
        held.charge_failure(handover, line),
        held.close(handover),
    ):
        with pytest.raises(LeaseLost):
            await late
    assert await everything(database) == before
    in_doubt = await store.transact(
        database.writes, lambda s: store.charge_calls_in_doubt(s, owner)
    )
    assert in_doubt == 4


async def test_a_lost_lease_is_not_renewed(database: Database, database_url: str) -> None:
    await add_job(database, "job_1")
    stale = await claimed(database, lease_seconds=0.0)
    await claimed(database)
    engine, lost, signals = open_sync_engine(database_url), asyncio.Event(), Signals()
    loop = asyncio.get_running_loop()
    heartbeat = Heartbeat(
        engine,
        stale,
        signals,
        lease_seconds=30.0,
        every_seconds=0.05,
        on_lost=lambda: loop.call_soon_threadsafe(lost.set),
    )
    assert signals.has_lease()
    heartbeat.start()
    async with asyncio.timeout(20):
        await lost.wait()
    await heartbeat.stop()
    engine.dispose()


def test_money_is_safe_for_four_fifths_of_a_lease_and_no_longer() -> None:
    signals = Signals()
    begun = time.monotonic() - 50.0
    spec = spec_for()
    Heartbeat(
        open_sync_engine("sqlite://"),
        Claim("job", 1, spec, 1, begun),
        signals,
        lease_seconds=60.0,
        every_seconds=20.0,
        on_lost=lambda: None,
    )
    assert not signals.has_lease()
    assert signals.safe_until == pytest.approx(begun + 48.0)


async def everything(database: Database) -> list[Any]:
    async with database.reads() as session:
        jobs = (await session.execute(select(*JobRow.__table__.columns))).all()
        events = (await session.execute(select(EventRow.job_id, EventRow.seq))).all()
        arms = (await session.execute(select(ArmRow.job_id, ArmRow.n))).all()
    return [jobs, sorted(map(tuple, events)), sorted(map(tuple, arms))]


@pytest.mark.parametrize("hours", [-1, 1])
async def test_an_application_clock_an_hour_off_changes_nothing(
    postgres_url: str, hours: int
) -> None:
    undisturbed = await run_undisturbed(postgres_url)
    async with open_world(postgres_url) as world:
        name = world.database.engine.url.database
        async with world.database.engine.begin() as connection:
            for statement in (  # to the database, it is the application that is off
                "CREATE SCHEMA skewed",
                "CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
                f"$$ SELECT pg_catalog.clock_timestamp() + interval '{hours} hour' $$",
                f"ALTER DATABASE {name} SET search_path TO skewed, pg_catalog, public",
            ):
                await connection.execute(text(statement))
    async with open_world(postgres_url) as world:
        await world.add("job_2", budget={"trials": 4, "seconds": 1_800})
        runner = world.start()
        await world.ended("job_2")
        await runner.end()
        row = await world.row("job_2")
        assert row.lease_token == 1
        assert row.stop_reason == "budget_trials"
        assert await world.record("job_2") == undisturbed.record


async def test_the_shortest_lease_is_enough_for_a_job_of_many_leases(postgres_url: str) -> None:
    undisturbed = await run_undisturbed(postgres_url)
    async with open_world(postgres_url) as world:
        world.target.latency = 0.1
        await world.add("job_2")
        runner = world.start(lease_seconds=1.0)
        await world.ended("job_2")
        await runner.end()
        row = await world.row("job_2")
        assert await world.record("job_2") == undisturbed.record
        assert row.in_doubt_calls <= 4 * (row.lease_token - 1)


@pytest.mark.parametrize("round_number", range(5))
async def test_cancel_and_the_end_of_a_job_meet_in_one_of_two_ways(
    database: Database, round_number: int
) -> None:
    await add_job(database, "job_1")
    owner = await claimed(database)
    connections = Connections((await PlainScorer().targets())[0])

    async def cancel() -> InstructZeroError | None:
        try:
            await store.transact(database.writes, lambda s: control.cancel(s, "job_1", connections))
        except Conflict as error:
            return error
        return None

    async with asyncio.TaskGroup() as group:
        works = [cancel(), finish(database, owner)]
        tasks = [group.create_task(work) for work in works[:: 1 if round_number % 2 else -1]]
    assert len(tasks) == 2
    async with database.reads() as session:
        row = await session.get(JobRow, "job_1")
        kinds = (await session.scalars(select(EventRow.type).order_by(EventRow.seq))).all()
    assert row is not None
    assert (row.status, row.cancel_requested) == ("succeeded", False)
    assert kinds in (["claimed", "succeeded"], ["claimed", "cancel_requested", "succeeded"])


async def finish(database: Database, owner: Claim) -> None:
    await store.transact(
        database.writes, lambda s: store.move_job(s, owner, JobStatus.SUCCEEDED, result={})
    )


async def test_a_running_job_is_not_deleted(database: Database) -> None:
    await add_job(database, "job_1")
    owner = await claimed(database)
    with pytest.raises(Conflict, match="cancel it first"):
        await store.transact(database.writes, lambda s: control.delete(s, "job_1"))
    await finish(database, owner)
    await store.transact(database.writes, lambda s: control.delete(s, "job_1"))
    assert (await everything(database)) == [[], [], []]


async def test_a_job_of_a_newer_version_is_left_to_newer_runners(database: Database) -> None:
    """A new version may take a job over in the middle; an old one never takes it back."""
    await add_job(database, "job_1")
    await claimed(database, lease_seconds=0.0)
    async with database.writes.begin() as session:
        await session.execute(update(JobRow).values(algo_version=JobRow.algo_version + 1))
    assert await claim(database) is None


async def test_a_job_whose_spec_cannot_be_read_fails_and_stops_no_runner(
    database: Database,
) -> None:
    await add_many(database, 1, "a")
    await add_many(database, 1, "b")
    async with database.writes.begin() as session:
        await session.execute(
            update(JobRow).where(JobRow.tenant == "a").values(spec={"name": "of another time"})
        )
    assert await claim(database) is None
    assert (await claimed(database)).spec.tenant == "b"
    async with database.reads() as session:
        row = await session.get(JobRow, "a_00000")
    assert row is not None
    assert (row.status, row.runner_id) == ("failed", None)
    assert row.status_reason is not None
    assert row.status_reason["code"] == "spec_unreadable"
