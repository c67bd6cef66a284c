"""Jobs on a real database and a target that logs; and what must hold whatever befell a runner."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from sqlalchemy import inspect, make_url, select, update

from instructzero.contracts import JobSpec
from services.optimizer.database import Database, open_database
from services.optimizer.tables import (
    ArmRow,
    EvaluationRow,
    EventRow,
    HandoverRow,
    JobRow,
    PointRow,
    StepRow,
)
from tests.faults.runner_process import HANDED_OVER, TARGET, RunnerProcess, Task
from tests.optimizer.worlds import chance, make_spec, quality
from tests.scorer.fake_target import FakeTarget, Seen, completion, serve_fake

ENDED = ("succeeded", "failed", "cancelled")


async def respond(seen: Seen, _: web.Request) -> web.Response:
    """Answer right with the instruction's quality as probability, fixed per example."""
    before, _, after = seen.text.partition("\n\nInput: ")
    instruction = before.removeprefix("Instruction: ")
    right = chance(instruction, after) < quality(instruction)
    return completion("b" if right else "wrong")


def spec_for(**changes: Any) -> JobSpec:
    """A job of some 80 calls, the fewest that show all parts of the loop."""
    few: dict[str, Any] = make_spec().task.model_dump(mode="json")
    few["test"] = few["test"][:12]
    fixed = {"target": TARGET, "budget": {"trials": 4}, "strategy": "random", "task": few}
    return make_spec(**fixed | changes)


class World:
    """A database, a target, and the runner processes that a test started."""

    def __init__(self, database: Database, url: str, target: FakeTarget) -> None:
        self.database = database
        self.url = url
        self.target = target
        self._started: list[RunnerProcess] = []

    def start(
        self, *fail_points: str, url: str | None = None, lease_seconds: float = 60.0
    ) -> RunnerProcess:
        task = Task(url or self.url, self.target.base_url, fail_points, lease_seconds)
        self._started.append(RunnerProcess(task))
        return self._started[-1]

    def kill_all(self) -> None:
        for process in self._started:
            process.kill()

    async def add(self, job_id: str = "job_1", **changes: Any) -> None:
        await add_job(self.database, job_id, **changes)

    async def row(self, job_id: str = "job_1") -> JobRow:
        async with self.database.reads() as session:
            row = await session.get(JobRow, job_id)
        assert row is not None
        return row

    async def set(self, job_id: str = "job_1", **values: Any) -> None:
        async with self.database.writes.begin() as session:
            await session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))

    async def let_leases_run_out(self) -> None:
        """Bring the end of every lease forward, so that no test waits for it."""
        async with self.database.writes.begin() as session:
            await session.execute(update(JobRow).values(lease_expires_at=0))

    async def ended(self, *job_ids: str, seconds: float = 240.0) -> None:
        async with asyncio.timeout(seconds):
            for job_id in job_ids or ("job_1",):
                while (await self.row(job_id)).status not in ENDED:  # noqa: ASYNC110 - nothing tells us
                    await asyncio.sleep(0.02)

    async def finish(self, *job_ids: str) -> None:
        """Let a healthy runner take the jobs over and end them."""
        await self.let_leases_run_out()
        runner = self.start()
        await self.ended(*job_ids)
        await runner.end()

    def repeats(self) -> int:
        """How many requests the target saw beyond the first of each."""
        seen = Counter(request.text for request in self.target.seen)
        return sum(seen.values()) - len(seen)

    async def record(self, job_id: str = "job_1") -> list[Any]:
        """Everything that was decided and learned, without times and ids."""
        columns = (
            (StepRow, ("step", "kind", "decision", "is_done")),
            (PointRow, ("n", "step", "z", "arm", "text")),
            (ArmRow, ("n", "text", "source", "n_points", "trial")),
            (EvaluationRow, ("split", "arm", "example", "step", "score", "answer")),
        )
        async with self.database.reads() as session:
            return [
                [
                    tuple(row)
                    for row in await session.execute(
                        select(*(getattr(table, name) for name in names))
                        .where(table.job_id == job_id)
                        .order_by(*inspect(table).primary_key)
                    )
                ]
                for table, names in columns
            ]

    async def check(self, undisturbed: Outcome, *, losses: int, job_id: str = "job_1") -> None:
        """Fail unless the job ended like an undisturbed one, at no more than the honest price."""
        row = await self.row(job_id)
        assert row.status == "succeeded", row.status_reason
        assert comparable(row.result) == undisturbed.result
        assert await self.record(job_id) == undisturbed.record
        await self.check_ledger(losses=losses, job_id=job_id)

    async def check_ledger(self, *, losses: int, job_id: str = "job_1") -> None:
        """Fail unless every request is in the ledger and only those in doubt were repeated."""
        row = await self.row(job_id)
        assert self.target.n_requests <= row.calls
        assert self.repeats() <= row.in_doubt_calls <= losses * HANDED_OVER
        assert (row.reserved_calls, row.reserved_tokens) == (0, 0)
        async with self.database.reads() as session:
            events = (
                await session.execute(
                    select(EventRow.seq, EventRow.type)
                    .where(EventRow.job_id == job_id)
                    .order_by(EventRow.seq)
                )
            ).all()
            still_open = select(HandoverRow.n).where(HandoverRow.state == "sent")
            assert (await session.scalars(still_open)).all() == []
        assert [seq for seq, _ in events] == list(range(1, row.n_events + 1))
        assert sum(kind in ENDED for _, kind in events) == 1


async def add_job(database: Database, job_id: str, **changes: Any) -> None:
    """Store a queued job."""
    spec = spec_for(**changes)
    async with database.writes.begin() as session:
        session.add(JobRow.of(job_id, spec))


class Outcome:
    """What an undisturbed run of a job left."""

    def __init__(self, result: dict[str, Any], record: list[Any]) -> None:
        self.result = result
        self.record = record


def comparable(result: dict[str, Any] | None) -> dict[str, Any]:
    """A result document without what may differ between two runs: ids, times and usage."""
    assert result is not None
    return {k: v for k, v in result.items() if k not in {"job_id", "usage"} and "_at" not in k}


@asynccontextmanager
async def open_world(url: str) -> AsyncIterator[World]:
    # A transaction that a frozen runner left open is ended after two seconds, not thirty.
    timeout = {"options": "-c idle_in_transaction_session_timeout=2000"}
    url = make_url(url).update_query_dict(timeout).render_as_string(hide_password=False)
    database = open_database(url)
    async with serve_fake(FakeTarget(respond=respond, latency=0.005)) as target:
        world = World(database, url, target)
        try:
            yield world
        finally:
            world.kill_all()
            await database.close()


async def run_undisturbed(url: str, **changes: Any) -> Outcome:
    """Run one job with nothing in its way, and check that it costs each call once."""
    async with open_world(url) as world:
        await world.add(**changes)
        await world.finish("job_1")
        row = await world.row()
        assert row.calls == world.target.n_requests
        assert world.repeats() == row.in_doubt_calls == 0
        return Outcome(comparable(row.result), await world.record())
