"""The loop against a world that costs nothing: budgets, determinism, outages, interruptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select, update

from instructzero.contracts import JobSpec, ScoreCondition, ScoreLine, ScoreRequest
from services.optimizer.database import Database
from services.optimizer.job_run import LoopDeps
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings
from services.optimizer.tables import ArmRow, EvaluationRow, EventRow, JobRow, PointRow, StepRow
from tests.optimizer.worlds import PlainGenerator, PlainScorer, make_spec, until


class World:
    """A database, a generator and a scorer, and a way to run jobs on them."""

    def __init__(self, database: Database, database_url: str) -> None:
        self.database = database
        self.settings = Settings(
            database_url=database_url,  # type: ignore[arg-type]
            lease_seconds=60.0,
            generator_patience_seconds=20.0,
        )
        self.generator = PlainGenerator()
        self.scorer = PlainScorer()

    async def add(self, job_id: str, spec: JobSpec) -> None:
        """Store a queued job."""
        async with self.database.writes.begin() as session:
            session.add(JobRow.of(job_id, spec))

    def runner(self, *, take_over: bool = False) -> Runner:
        """Return a new runner."""
        deps = LoopDeps(self.database, self.generator, self.scorer, self.settings)
        return Runner(deps, take_over=take_over)

    async def run(self, spec: JobSpec, job_id: str = "job_1") -> JobRow:
        """Run a new job to its end and return its row."""
        await self.add(job_id, spec)
        return await self.go_on(job_id)

    async def go_on(self, job_id: str = "job_1") -> JobRow:
        """Claim a job and run it until it leaves `running`."""
        runner = self.runner()
        assert await runner.run_one(job_id)
        runner.close()
        return await self.row(job_id)

    async def row(self, job_id: str = "job_1") -> JobRow:
        """Return the job's row."""
        async with self.database.reads() as session:
            row = await session.get(JobRow, job_id)
        assert row is not None
        return row

    async def trials(self, job_id: str = "job_1") -> list[Any]:
        """Return everything that was decided and learned, without times and ids."""
        async with self.database.reads() as session:
            steps = await session.execute(
                select(StepRow.step, StepRow.decision)
                .where(StepRow.job_id == job_id)
                .order_by(StepRow.step)
            )
            points = await session.execute(
                select(PointRow.n, PointRow.z, PointRow.arm)
                .where(PointRow.job_id == job_id)
                .order_by(PointRow.n)
            )
            arms = await session.execute(
                select(ArmRow.n, ArmRow.text, ArmRow.trial)
                .where(ArmRow.job_id == job_id)
                .order_by(ArmRow.n)
            )
            scores = await session.execute(
                select(
                    EvaluationRow.split,
                    EvaluationRow.arm,
                    EvaluationRow.example,
                    EvaluationRow.score,
                )
                .where(EvaluationRow.job_id == job_id)
                .order_by(EvaluationRow.split, EvaluationRow.arm, EvaluationRow.example)
            )
            return [[tuple(row) for row in rows] for rows in (steps, points, arms, scores)]


@pytest.fixture
def world(database: Database, database_url: str) -> World:
    """Return a world on a fresh database."""
    return World(database, database_url)


def without_cost(result: dict[str, Any] | None) -> dict[str, Any]:
    """Return a result document without ids, times and usage."""
    assert result is not None
    return {k: v for k, v in result.items() if k not in {"usage", "job_id"} and "_at" not in k}


@pytest.mark.parametrize("strategy", ["random", "instructzero", "default", "ape"])
async def test_a_job_ends_with_a_measured_winner_and_a_verdict(world: World, strategy: str) -> None:
    row = await world.run(make_spec(strategy=strategy))
    assert row.status == "succeeded", row.status_reason
    assert row.result is not None
    assert row.result["best"]["test"]["n"] > 0
    assert row.result["comparison"]["verdict"] in {"better", "not_better", "not_enough_data"}
    assert row.result["best"]["test"]["score"] > row.result["baseline"]["test"]["score"]


@pytest.mark.parametrize("calls", [1, 7, 50, 300])
@pytest.mark.parametrize("fails", [0.0, 0.2])
async def test_a_budget_of_calls_is_never_overshot(world: World, calls: int, fails: float) -> None:
    world.scorer.fails = fails
    row = await world.run(make_spec(budget={"calls": calls}, strategy="default"))
    assert row.status == "succeeded"
    assert world.scorer.requests <= calls
    assert row.calls == world.scorer.requests
    assert row.reserved_calls == 0
    assert world.scorer.requests > 0.9 * calls - 1
    assert max(world.scorer.sent.values()) == 1, "an answered request was sent again"


@pytest.mark.parametrize("budget", [{"tokens": 3000}, {"usd": 0.004}], ids=["tokens", "usd"])
async def test_tokens_and_money_are_hard_bounds(world: World, budget: dict[str, float]) -> None:
    world.scorer.price = {"input_per_million": 0.2, "output_per_million": 3.0}
    row = await world.run(make_spec(budget=budget, strategy="default"))
    assert row.status == "succeeded"
    assert row.calls > 5
    assert row.prompt_tokens + row.completion_tokens <= budget.get("tokens", 1e9)
    assert row.usd <= budget.get("usd", 1e9)
    assert row.stop_reason == f"budget_{next(iter(budget))}"


async def test_a_budget_of_trials_counts_distinct_instructions(world: World) -> None:
    row = await world.run(make_spec(budget={"trials": 6}, strategy="instructzero"))
    assert row.result is not None
    assert row.result["trials"] <= 6
    assert row.stop_reason == "budget_trials"


async def test_a_budget_of_seconds_ends_a_slow_job(world: World) -> None:
    world.scorer.latency_seconds = 0.2  # the whole search would take the better part of a minute
    row = await world.run(make_spec(budget={"seconds": 2.0}))
    assert row.status == "succeeded"
    assert row.stop_reason == "budget_seconds"
    assert row.finished_at is not None
    assert row.started_at is not None
    assert (row.finished_at - row.started_at).total_seconds() < 20.0


async def test_the_same_spec_and_seed_give_the_same_trials(world: World) -> None:
    spec = make_spec(strategy="default")
    first = await world.run(spec, "job_1")
    second = await world.run(spec, "job_2")
    other = await world.run(make_spec(strategy="default", seed=1), "job_3")
    assert await world.trials("job_1") == await world.trials("job_2")
    assert await world.trials("job_1") != await world.trials("job_3")
    assert without_cost(first.result) == without_cost(second.result)
    assert other.result is not None


@pytest.mark.parametrize(
    ("strategy", "budget"),
    [("default", {"calls": 150}), ("default", {"usd": 0.004}), ("random", {"calls": 150})],
)
async def test_the_order_in_which_answers_arrive_changes_nothing(
    world: World, strategy: str, budget: dict[str, float]
) -> None:
    world.scorer.price = {"input_per_million": 0.2, "output_per_million": 3.0}
    spec = make_spec(strategy=strategy, budget=budget)
    first = await world.run(spec, "job_1")
    world.scorer.uneven_seconds = 0.01
    second = await world.run(spec, "job_2")
    one, other = await world.trials("job_1"), await world.trials("job_2")
    assert one[:3] == other[:3]
    if "calls" in budget:  # what still fits money is known call by call
        assert one == other
        assert without_cost(first.result) == without_cost(second.result)


async def test_the_next_step_does_not_wait_for_the_slowest_call(world: World) -> None:
    class OneSlow(PlainScorer):
        is_slow = True

        async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
            if self.is_slow and self.requests >= 80:  # some calls of the race, and then no others
                self.is_slow = False
                n_sent = await calls_until_its_step(request) - len(request.examples)
                await until(lambda: self.requests > n_sent)  # one is of a later step
            async for line in super().score(request):
                yield line

    async def calls_until_its_step(request: ScoreRequest) -> int:
        steps, _, arms, _ = await world.trials()
        arm = next(n for n, text, _ in arms if text == request.instruction)
        pair = [arm, int(request.examples[0].input.removeprefix("v"))]
        n_calls = 0
        for _, content in steps:
            n_calls += len(content["evaluations"])
            if pair in content["evaluations"]:
                return n_calls
        raise AssertionError("a call that no step asked for")

    world.scorer = scorer = OneSlow(in_flight=4)
    row = await world.run(make_spec(strategy="default"))
    assert row.status == "succeeded"
    assert not scorer.is_slow
    steps = (await world.trials())[0]
    told = [content["n_told"] for _, content in steps if "n_told" in content]
    assert told[:3] == [0, 0, 1]
    assert all(step - n_told <= 2 for step, n_told in enumerate(told))


async def test_texts_are_known_before_the_scores_of_their_step(world: World) -> None:
    class Held(PlainScorer):
        async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
            if request.instruction == "Do the task.":  # all that the first step can buy
                await until(lambda: self.requests > 0)
            async for line in super().score(request):
                yield line

    world.scorer = Held(in_flight=16)
    row = await world.run(make_spec(strategy="random"))
    assert row.status == "succeeded"
    steps = (await world.trials())[0]
    assert {arm for arm, _ in steps[0][1]["evaluations"]} == {0}
    assert steps[1][1]["n_told"] == 0
    assert len({arm for arm, _ in steps[1][1]["evaluations"]}) > 1


async def test_the_final_check_begins_with_the_last_answers_of_the_search(world: World) -> None:
    class Held(PlainScorer):
        n_searched = 0
        n_checked = 0

        async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
            is_search = request.examples[0].input.startswith("v")
            self.n_searched += is_search * len(request.examples)
            self.n_checked += (not is_search) * len(request.examples)
            if self.n_searched >= 156:  # 13 instructions on 12 examples, all that 200 calls allow
                await until(lambda: self.n_checked > 0)
            async for line in super().score(request):
                yield line

    world.scorer = scorer = Held()
    row = await world.run(make_spec(budget={"calls": 200}))
    assert row.status == "succeeded"
    assert scorer.n_searched == 156
    assert row.calls <= 200
    assert row.result is not None
    assert row.result["best"]["test"]["n"] == row.result["baseline"]["test"]["n"] == 20
    assert max(scorer.sent.values()) == 1
    async with world.database.reads() as session:
        kinds = (await session.scalars(select(StepRow.kind).order_by(StepRow.step))).all()
        undone = await session.scalar(select(func.count()).where(StepRow.is_done.is_(False)))
    assert kinds[-2:] == ["baseline", "final"]
    assert set(kinds[:-2]) == {"search"}
    assert undone == 0


async def test_answers_that_took_no_call_keep_their_slots_until_the_handover_ends(
    world: World,
) -> None:
    class Kept(PlainScorer):
        reserved: list[int]

        async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
            async for line in super().score(request):
                assert isinstance(line, ScoreLine)
                yield line.model_copy(update={"calls": 0, "cached": True})
            await asyncio.sleep(0.02)
            self.reserved.append((await world.row()).reserved_calls)

    world.scorer = scorer = Kept(in_flight=8)
    scorer.reserved = []
    row = await world.run(make_spec(budget={"calls": 200}))
    assert row.status == "succeeded"
    assert 0 < max(scorer.reserved) <= 12


async def test_an_outage_of_the_generator_is_shown_and_waited_out(world: World) -> None:
    undisturbed = await world.run(make_spec(), "job_1")
    world.generator.outages = 2
    row = await world.run(make_spec(), "job_2")
    assert await world.trials("job_1") == await world.trials("job_2")
    assert without_cost(row.result) == without_cost(undisturbed.result)
    assert row.conditions == []
    async with world.database.reads() as session:
        shown = await session.scalars(
            select(EventRow.data).where(EventRow.job_id == "job_2", EventRow.type == "condition_on")
        )
    assert {"condition": "generator_unavailable"} in shown.all()


async def test_a_changed_fingerprint_stops_the_job(world: World) -> None:
    await world.add("job_1", make_spec(strategy="default"))
    task = asyncio.create_task(world.go_on())
    await until(lambda: bool(world.generator.requests))
    world.generator.fingerprint = "another model"
    row = await task
    assert row.status == "failed"
    assert row.status_reason is not None
    assert row.status_reason["code"] == "fingerprint_changed"


async def test_a_terminal_answer_fails_the_job_before_more_is_spent(world: World) -> None:
    world.scorer.stop_code = "invalid_api_key"
    row = await world.run(make_spec(budget={"calls": 200}))
    assert row.status == "failed"
    assert row.status_reason == {"code": "invalid_api_key", "message": "the key is wrong"}
    assert world.scorer.requests <= 2 * world.scorer.in_flight
    assert row.n_evaluations == 0


async def test_cancel_ends_a_running_job_with_what_it_knows(world: World) -> None:
    world.scorer.latency_seconds = 0.01
    await world.add("job_1", make_spec(budget={"calls": 2000}))
    task = asyncio.create_task(world.go_on())
    await until(lambda: world.scorer.requests >= 30)
    await set_flag(world, "cancel_requested")
    row = await task
    assert row.status == "cancelled"
    assert row.reserved_calls == 0
    assert row.in_doubt_calls == 0
    assert row.result is not None


async def test_a_paused_job_goes_on_where_it_was(world: World) -> None:
    undisturbed = await world.run(make_spec(budget={"trials": 12}), "job_0")
    world.scorer = PlainScorer(latency_seconds=0.01)
    await world.add("job_1", make_spec(budget={"trials": 12}))
    task = asyncio.create_task(world.go_on())
    await until(lambda: world.scorer.requests >= 30)
    await set_flag(world, "pause_requested")
    assert (await task).status == "paused"
    async with world.database.writes.begin() as session:
        await session.execute(update(JobRow).values(status="queued").where(JobRow.id == "job_1"))
    row = await world.go_on()
    assert without_cost(row.result) == without_cost(undisturbed.result)
    assert max(world.scorer.sent.values()) == 1


async def set_flag(world: World, name: str) -> None:
    """Ask a running job to stop or to pause."""
    async with world.database.writes.begin() as session:
        await session.execute(update(JobRow).values({name: True}).where(JobRow.id == "job_1"))


async def test_a_job_that_always_breaks_ends_as_poison(world: World) -> None:
    class Broken(PlainGenerator):
        async def generate(self, request: Any) -> Any:
            raise ValueError("a fault of ours")

    world.generator = Broken()
    await world.add("job_1", make_spec(task=without_baseline()))
    for _ in range(world.settings.max_fruitless_claims):
        assert (await world.go_on()).status == "queued"
    row = await world.go_on()
    assert row.status == "failed"
    assert row.status_reason is not None
    assert row.status_reason["code"] == "poison_job"


def without_baseline() -> dict[str, Any]:
    """Return a task without a given instruction, so that nothing can be tried before a text."""
    return make_spec().task.model_dump(mode="json", exclude={"baseline"})


async def test_an_edited_journal_row_is_detected(world: World) -> None:
    world.scorer.latency_seconds = 0.01
    await world.add("job_1", make_spec(budget={"calls": 400}))
    task = asyncio.create_task(world.go_on())
    await until(lambda: world.scorer.requests >= 30)
    await set_flag(world, "pause_requested")
    await task
    async with world.database.writes.begin() as session:
        step = await session.get(StepRow, ("job_1", 0))
        assert step is not None
        step.decision = {**step.decision, "reason": "edited by hand"}
        await session.execute(update(JobRow).values(status="queued").where(JobRow.id == "job_1"))
    row = await world.go_on()
    assert row.status == "failed"
    assert row.status_reason is not None
    assert row.status_reason["code"] == "journal_damaged"
