"""A runner is killed, frozen or broken at every named point; another goes on as if nothing was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from instructzero.errors import InvalidRequest
from services.optimizer import failpoints
from tests.databases import new_postgres_database
from tests.faults.world import Outcome, World, open_world, run_undisturbed
from tests.optimizer.worlds import until

POINTS = {
    "the claim's commit": "claimed",
    "the charge of what was in doubt": "recovered",
    "a decision, before its commit": "decided",
    "a later decision, before its commit": "decided@3",
    "a decision's commit, before the generator is called": "journaled",
    "the generator's reply, before its commit": "generated",
    "the commit of its texts": "written",
    "a reservation, before the call": "sent@3",
    "an answer, before it is stored": "answered@2",
    "some of several parallel answers": "answered@30",
    "an answer was stored": "recorded@10",
    "a step's last score, before its commit": "scored@2",
    "a step's commit, with its events": "told",
    "the final check, before the result is stored": "measured",
    "the end": "finished",
}
LEASE_SECONDS = 5.0
"""Of the runners that are frozen for longer."""


@pytest.fixture(scope="module")
def undisturbed(postgres: str) -> Outcome:
    with new_postgres_database(postgres) as url:
        return asyncio.run(run_undisturbed(url))


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    async with open_world(postgres_url) as world:
        yield world


def armed(point: str, action: str) -> str:
    name, _, visit = point.partition("@")
    return f"{name}={action}@{visit or 1}"


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS.keys())
async def test_a_runner_killed_after(world: World, undisturbed: Outcome, point: str) -> None:
    await world.add()
    await world.start(armed(point, "kill")).killed_itself()
    assert (await world.row()).status == ("succeeded" if point == "finished" else "running")
    await world.finish()
    await world.check(undisturbed, losses=1)


@pytest.mark.parametrize(
    "point",
    ["claimed", "decided@2", "generated", "sent@3", "answered@7", "scored", "measured", "finished"],
)
async def test_a_runner_frozen_for_longer_than_its_lease_after(
    world: World, undisturbed: Outcome, point: str
) -> None:
    await world.add()
    frozen = world.start(armed(point, "freeze"), lease_seconds=LEASE_SECONDS)
    await frozen.froze_itself()
    end = time.monotonic() + LEASE_SECONDS  # on its own clock too: until then it may spend
    await world.finish()
    await asyncio.sleep(end - time.monotonic())
    before = await world.row()
    n_requests = world.target.n_requests
    frozen.thaw()
    await frozen.end()
    after = await world.row()
    assert (after.version, after.lease_token, after.result) == (
        before.version,
        before.lease_token,
        before.result,
    ), "a runner that lost its lease wrote something"
    assert world.target.n_requests == n_requests, "it spent something"
    await world.check(undisturbed, losses=1)


@pytest.mark.parametrize("point", ["decided@2", "generated", "answered@7"])
async def test_a_fault_of_ours_after(world: World, undisturbed: Outcome, point: str) -> None:
    await world.add()
    runner = world.start(armed(point, "raise"))
    await world.ended()
    await runner.end()
    await world.check(undisturbed, losses=1)


async def test_runners_killed_one_after_the_other_also_while_they_recover(
    world: World, undisturbed: Outcome
) -> None:
    await world.add()
    for point in ("answered@20", "claimed", "recovered", "answered@3", "recovered"):
        await world.let_leases_run_out()
        await world.start(armed(point, "kill")).killed_itself()
    await world.finish()
    await world.check(undisturbed, losses=2)


async def test_a_runner_killed_during_cancel(world: World) -> None:
    await world.add(budget={"calls": 2000})
    runner = world.start("cancelling=kill", "leaving=kill")
    await until_requests(world, 20)
    await world.set(cancel_requested=True)
    await runner.killed_itself()
    assert (await world.row()).status == "running"
    await world.finish()
    row = await world.row()
    assert (row.status, row.cancel_requested) == ("cancelled", False)
    assert row.result is not None
    await world.check_ledger(losses=1)


async def test_a_job_that_kills_every_runner_ends_as_poison(world: World) -> None:
    await world.add()
    for _ in range(5):
        await world.let_leases_run_out()
        await world.start("generated=kill", "recovered=kill").killed_itself()
    await world.finish()
    row = await world.row()
    assert row.status == "failed"
    assert row.status_reason is not None
    assert row.status_reason["code"] == "poison_job"
    assert world.target.n_requests == 0


async def test_a_drained_runner_gives_its_job_back_at_no_cost(
    world: World, undisturbed: Outcome
) -> None:
    await world.add()
    runner = world.start()
    await until_requests(world, 20)
    await runner.end()
    row = await world.row()
    assert (row.status, row.runner_id, row.reserved_calls) == ("queued", None, 0)
    assert row.in_doubt_calls == 0
    await world.finish()
    await world.check(undisturbed, losses=0)


async def until_requests(world: World, n: int) -> None:
    await until(lambda: world.target.n_requests >= n, seconds=120)


@pytest.fixture
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm(())


@pytest.mark.parametrize("entry", ["nowhere=kill", "sent=explode", "sent=kill@x", "sent", ""])
def test_an_unknown_fail_point_is_refused_in_words(entry: str, disarmed: None) -> None:
    with pytest.raises(InvalidRequest, match=r"POINT=ACTION@VISIT"):
        failpoints.arm([entry])


def test_fail_points_do_nothing_unless_armed(disarmed: None) -> None:
    for name in failpoints.POINTS:
        failpoints.fail_point(name)
    failpoints.arm(["sent=raise@2"])
    failpoints.fail_point("sent")
    with pytest.raises(failpoints.Broken):
        failpoints.fail_point("sent")
    failpoints.fail_point("sent")
