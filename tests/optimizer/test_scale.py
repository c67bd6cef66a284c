"""Large tables: how the hot statements are planned, what an evaluation costs, what reading costs.

The tables hold 100,000 jobs; `--evaluations` says how many evaluations beside them.
"""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from instructzero.contracts import JobStatus, ScoreLine, TokenUsage
from services.optimizer import claims, reads, store
from services.optimizer.database import Database, open_database
from services.optimizer.export import export_records, json_lines
from services.optimizer.jobs import Connections, Cost
from services.optimizer.ledger import Ledger, Signals
from services.optimizer.seals import seal
from services.optimizer.state import JobState
from services.optimizer.store import Claim
from services.optimizer.tables import ArmRow, EvaluationRow, JobRow
from tests.databases import new_postgres_database
from tests.optimizer.worlds import PlainScorer, make_spec

N_JOBS = 100_000
OF_ONE_JOB = 1_000
N_ARMS, N_EXAMPLES = 60, 50
BUDGET_BYTES = 2_048
READ_SECONDS = 0.2
BLOCKS = 100
LARGE = {"jobs", "arms", "evaluations", "events", "handovers"}

FILL = (
    """
    INSERT INTO jobs SELECT made.* FROM generate_series(1, :jobs) n, jobs j,
    LATERAL jsonb_populate_record(j, jsonb_build_object(
        'id', 'job_' || n,
        'tenant', 'tenant_' || n % 40,
        'created_at', j.created_at + n,
        'lease_expires_at', CASE WHEN n % 100 = 1 THEN 9e15::bigint END,
        'spec', CASE n % 100 WHEN 0 THEN j.spec::jsonb ELSE '{}' END,
        'status', CASE n % 100 WHEN 0 THEN 'queued' WHEN 1 THEN 'running' WHEN 2 THEN 'paused'
            ELSE 'succeeded' END)) made
    WHERE j.id = 'pattern'
    """,
    """
    INSERT INTO arms (job_id, n, text, source, step, n_points, trial)
    SELECT 'job_' || job, n, 'Rule ' || n, 'soft_prompt', 0, 1, n + 1
    FROM generate_series(1, :filled) job, generate_series(0, 49) n
    """,
    """
    INSERT INTO evaluations (job_id, split, arm, example, step, score, answer, is_refused,
        is_cached, calls, failed_calls, prompt_tokens, completion_tokens, stored_at)
    SELECT 'job_' || job, 'validation', arm, example, 0, 1, 'right', false, false, 1, 0, 20, 2, 0
    FROM generate_series(1, :filled) job, generate_series(0, 49) arm, generate_series(0, 19) example
    """,
    """
    INSERT INTO events (job_id, seq, at, type, data)
    SELECT 'job_' || job, n, 0, 'step_done', '{}'
    FROM generate_series(1, :filled) job, generate_series(101, 120) n
    """,
    """
    INSERT INTO handovers (job_id, n, step, arm, state, reserved_calls, reserved_tokens,
        reserved_usd, used_calls, lease_token, sent_at)
    SELECT 'job_' || job, n, 0, 0, 'done', 8, 0, 0, 8, 1, 0
    FROM generate_series(1, :filled) job, generate_series(1, 120) n
    """,
    "ANALYZE",
)


@pytest.fixture(scope="module")
def large(postgres: str, evaluations: int) -> Iterator[str]:
    """The URL of a database as a busy year leaves it."""
    with new_postgres_database(postgres) as url:
        asyncio.run(fill(url, evaluations // OF_ONE_JOB))
        yield url


async def fill(url: str, filled: int) -> None:
    database = open_database(url)
    async with database.writes.begin() as session:
        session.add(JobRow.of("pattern", make_spec(), status="succeeded"))
        await session.flush()
        for statement in FILL:
            await session.execute(text(statement), {"jobs": N_JOBS, "filled": filled})
    await database.close()


@pytest.fixture
async def busy(large: str) -> AsyncIterator[Database]:
    database = open_database(large)
    yield database
    await database.close()


@contextmanager
def captured(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Yield what is sent to the database, with its parameters."""
    found: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        found.append((statement, parameters))

    engines = [database.engine.sync_engine, database.thread_writes.kw["bind"]]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    yield found
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)


async def do_what_is_done_often(database: Database) -> None:
    """Run every hot statement once."""
    async with database.writes() as session:
        owner = await claims.claim_job(session, runner_id="r", lease_seconds=60.0)
        assert owner is not None
        await session.execute(claims.renew_statement(owner, 60.0))
        await store.guard(session, owner)
        await store.charge_calls_in_doubt(session, owner)
        await store.load_journal(session, "job_1")
        await store.finish_step(session, owner, step=0, best=None)
        await session.run_sync(lambda s: store.read_answers(s, ["key"], 60.0))
        await session.rollback()
    async with database.reads() as session:
        await reads.read_job(session, "job_1")
        await session.run_sync(lambda s: reads.read_jobs(s, ["job_1", "job_2"]))
        await session.run_sync(lambda s: reads.read_marks(s, ["job_1", "job_2"]))
        await reads.find_idempotent(session, "key", "hash")
        for status in (None, JobStatus.PAUSED):
            page = await reads.list_jobs(session, status=status, labels={}, after=None, limit=50)
            after = (page[-1].created_at, page[-1].id)
            await reads.list_jobs(session, status=status, labels={}, after=after, limit=50)
        await reads.list_tried(session, "job_1", after=3, limit=50)
        await reads.read_tried(session, "job_1", 3)
        await reads.read_scores(session, "job_1", [1, 2, 3])
        await reads.read_evaluations(session, "job_1", 3)
        await reads.list_events(session, "job_1", after=5, limit=100)
        await reads.list_evaluations(session, "job_1", after=("validation", 20, 5))


def scans(plan: dict[str, Any]) -> Iterator[str]:
    """Yield the large tables that a plan reads from start to end."""
    if plan["Node Type"] == "Seq Scan" and plan["Relation Name"] in LARGE:
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from scans(part)


async def test_no_hot_statement_reads_a_whole_table(busy: Database) -> None:
    with captured(busy) as statements:
        await do_what_is_done_often(busy)
    planned = [
        (statement, parameters)
        for statement, parameters in statements
        if statement.lstrip().startswith(("SELECT", "UPDATE", "WITH"))
    ]
    assert len(planned) >= 25
    async with busy.engine.connect() as connection:
        for statement, parameters in planned:
            explained = await connection.exec_driver_sql(
                f"EXPLAIN (FORMAT JSON) {statement}", parameters
            )
            plan = explained.scalar_one()[0]["Plan"]
            assert not list(scans(plan)), statement


async def test_a_claim_reads_a_few_pages_however_many_jobs_there_are(busy: Database) -> None:
    with captured(busy) as statements:
        async with busy.writes() as session:
            assert await claims.claim_job(session, runner_id="r", lease_seconds=60.0) is not None
            await session.rollback()
    async with busy.engine.connect() as connection:
        for statement, parameters in statements:
            if statement.startswith("INSERT"):
                continue
            explained = await connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
            )
            plan = explained.scalar_one()[0]["Plan"]
            pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            # 40 tenants are looked up one by one; 1,000 jobs run
            assert pages < 1_500, (pages, statement)
        await connection.rollback()


async def claimed(database: Database) -> Claim:
    async with database.writes.begin() as session:
        session.add(JobRow.of("job_1", make_spec()))
    found = await store.transact(
        database.writes, lambda s: claims.claim_job(s, runner_id="r", lease_seconds=600.0)
    )
    assert found is not None
    return found


async def total_bytes(database: Database) -> int:
    async with database.reads() as session:
        found = await session.scalar(
            text(
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c "
                "JOIN pg_namespace s ON s.oid = c.relnamespace "
                "WHERE s.nspname = 'public' AND c.relkind = 'r'"
            )
        )
    return int(found or 0)


async def test_an_evaluation_takes_less_than_two_kilobytes_with_all_that_is_noted_for_it(
    postgres_url: str,
) -> None:
    database = open_database(postgres_url)
    owner = await claimed(database)
    await store.transact(
        database.writes, lambda s: store.add_given_arms(s, owner, [("a", "given")])
    )
    ledger = Ledger(database, owner, Signals(), next_handover=0)
    before, n = await total_bytes(database), 0
    for _ in range(BLOCKS):
        handover = await ledger.reserve(step=0, arm=0, wanted=8, one=Cost(1), keep=Cost())
        if handover is None:
            break
        stored = []
        for _ in range(handover.n):
            line = ScoreLine(
                id=str(n), answer="a typical answer of some words", score=1.0, calls=1,
                usage=TokenUsage(prompt_tokens=50, completion_tokens=8), usd=1e-5, latency_ms=420.0,
            )  # fmt: skip
            stored.append(
                ledger.record(handover, line, step=0, split="validation", arm=0, example=n)
            )
            n += 1
        await ledger.close(handover)
        assert all([await one for one in stored])
    assert n >= 200
    assert (await total_bytes(database) - before) / n < BUDGET_BYTES
    await database.close()


@pytest.fixture
async def done(postgres_url: str) -> AsyncIterator[Database]:
    """A database with one job of 3,000 evaluations."""
    database = open_database(postgres_url)
    async with database.writes.begin() as session:
        session.add(
            JobRow.of(
                "job_1",
                make_spec(),
                status="succeeded",
                n_arms=N_ARMS,
                n_evaluations=N_ARMS * N_EXAMPLES,
            )
        )
        await session.flush()
        await session.execute(insert(ArmRow), arm_rows())
        await session.execute(insert(EvaluationRow), evaluation_rows())
    yield database
    await database.close()


def arm_rows() -> Sequence[dict[str, Any]]:
    rows = [
        {"job_id": "job_1", "n": n, "text": f"Rule {n}", "source": "soft_prompt", "step": 0}
        for n in range(N_ARMS)
    ]
    return [{**row, "seal": seal(ArmRow, row), "trial": n + 1} for n, row in enumerate(rows)]


def evaluation_rows() -> Sequence[dict[str, Any]]:
    rows = [
        {
            "job_id": "job_1", "split": split, "arm": arm, "example": example, "step": 0,
            "score": 1.0, "answer": f"a typical answer of some words, {example}",
        }
        for arm in range(N_ARMS)
        for split, n in (("validation", 12), ("test", N_EXAMPLES - 12))
        for example in range(n)
    ]  # fmt: skip
    return [{**row, "seal": seal(EvaluationRow, row)} for row in rows]


async def test_a_job_of_3000_evaluations_is_read_back_quickly(done: Database) -> None:
    connections = Connections((await PlainScorer().targets())[0])
    took = []
    for _ in range(5):
        begun = time.process_time()
        async with done.reads() as session:
            journal = await store.load_journal(session, "job_1")
        state = JobState.open("job_1", make_spec(), connections)
        state.load(journal)
        took.append(time.process_time() - begun)
        assert len(journal.evaluations) == N_ARMS * N_EXAMPLES
    assert min(took) < READ_SECONDS, took


async def test_an_export_holds_a_chunk_in_memory_however_long_it_is(done: Database) -> None:
    spec = make_spec(
        task={
            **make_spec().task.model_dump(mode="json"),
            "test": [{"input": f"t{i}", "output": ["b"]} for i in range(N_EXAMPLES)],
        }
    )

    async def peak_after(n_jobs: int) -> int:
        tracemalloc.reset_peak()
        n_bytes = 0
        for _ in range(n_jobs):
            async for line in json_lines(export_records("job_1", spec, done)):
                n_bytes += len(line)
        assert n_bytes > n_jobs * N_ARMS * N_EXAMPLES * 100
        return tracemalloc.get_traced_memory()[1]

    await peak_after(1)  # caches fill
    tracemalloc.start()
    try:
        one, four = await peak_after(1), await peak_after(4)
    finally:
        tracemalloc.stop()
    assert four < 1.2 * one + 100_000
    assert four < 20_000_000
