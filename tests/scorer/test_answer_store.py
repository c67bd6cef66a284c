"""The answers of the all-in-one process: kept in its database, read and written together."""

from __future__ import annotations

import asyncio

from services.answer_store import DatabaseCache
from services.optimizer.database import Database, open_database
from services.scorer.cache import CachedAnswer

ANSWER = CachedAnswer("cold", 10, 1)


async def test_an_answer_is_on_disk_when_put_returns(database: Database, database_url: str) -> None:
    await DatabaseCache(database, ttl_seconds=60).put("key", ANSWER)
    other = open_database(database_url)
    assert await DatabaseCache(other, ttl_seconds=60).get("key") == ANSWER
    await other.close()


async def test_many_answers_at_the_same_time_are_all_kept(database: Database) -> None:
    cache = DatabaseCache(database, ttl_seconds=60)
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(cache.put(f"key-{number}", ANSWER._replace(text=str(number))))
    async with asyncio.TaskGroup() as group:
        found = [group.create_task(cache.get(f"key-{number}")) for number in range(201)]
    assert [answer.text for task in found if (answer := task.result())] == [
        str(number) for number in range(200)
    ]
    assert found[200].result() is None


async def test_a_newer_answer_replaces_an_older_one(database: Database) -> None:
    cache = DatabaseCache(database, ttl_seconds=60)
    await cache.put("key", ANSWER)
    await cache.put("key", ANSWER._replace(text="colder"))
    found = await cache.get("key")
    assert found is not None
    assert found.text == "colder"


async def test_an_old_answer_is_not_found(database: Database) -> None:
    await DatabaseCache(database, ttl_seconds=60).put("key", ANSWER)
    assert await DatabaseCache(database, ttl_seconds=1e-6).get("key") is None


async def test_a_caller_that_is_cancelled_does_not_take_the_others_with_it(
    database: Database,
) -> None:
    cache = DatabaseCache(database, ttl_seconds=60)
    gone = asyncio.create_task(cache.put("a", ANSWER))
    stays = asyncio.create_task(cache.put("b", ANSWER))
    await asyncio.sleep(0)
    gone.cancel()
    await stays
    assert await cache.get("b") == ANSWER
