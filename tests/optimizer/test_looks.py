"""Polls share their looks at the database, and none is told what was so before it asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import event, update

from services.optimizer.looks import Looks
from services.optimizer.tables import JobRow
from tests.optimizer.apis import Api


@pytest.fixture
def queries(api: Api) -> Iterator[list[str]]:
    """What the API's threads ask the database."""
    found: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        found.append(statement)

    engine = api.database.thread_writes.kw["bind"]
    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


async def test_polls_at_the_same_time_share_their_looks(api: Api, queries: list[str]) -> None:
    ids = [(await api.create(name=f"job {number}"))["id"] for number in range(3)]
    queries.clear()
    async with asyncio.TaskGroup() as group:
        polls = [group.create_task(api.get(f"/jobs/{ids[n % 3]}")) for n in range(60)]
    assert [poll.result()["id"] for poll in polls] == [ids[n % 3] for n in range(60)]
    assert len([query for query in queries if "FROM jobs" in query]) <= 10


async def test_one_that_does_not_exist_spoils_no_other_poll(api: Api) -> None:
    job_id = (await api.create())["id"]
    async with asyncio.TaskGroup() as group:
        polls = [
            group.create_task(api.http.get(f"/jobs/{name}"))
            for name in (job_id, "job_none", job_id, "job_none")
        ]
    assert [poll.result().status_code for poll in polls] == [200, 404, 200, 404]


async def test_a_look_shows_what_was_committed_before_it_was_asked_for(api: Api) -> None:
    job_id = (await api.create())["id"]
    looks, is_over = Looks(api.database), asyncio.Event()

    async def keep_looking() -> None:
        while not is_over.is_set():
            await looks.job(job_id)

    crowd = [asyncio.create_task(keep_looking()) for _ in range(4)]
    for version in range(100, 130):
        async with api.database.writes.begin() as session:
            await session.execute(update(JobRow).where(JobRow.id == job_id).values(version=version))
        assert (await looks.job(job_id)).version == version
        assert (await looks.mark(job_id)).version == version
    is_over.set()
    await asyncio.wait(crowd)
