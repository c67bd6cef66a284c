"""What a claimed job knows, rebuilt from its journal: arms, points, answers, and what is left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from instructzero.contracts import Example, JobSpec
from instructzero.errors import JournalDamaged
from services.optimizer import store
from services.optimizer.jobs import (
    GUESS_MARGIN,
    Connections,
    Cost,
    Splits,
    affordable_calls,
    calls_per_evaluation,
    split_examples,
    typical_call,
)
from services.optimizer.learned import Bills, Learned
from services.optimizer.results import Answered
from services.optimizer.seals import SealedRow, is_intact
from services.optimizer.search.report import FinalCheckPlan, plan_final_check
from services.optimizer.search.strategy import (
    GeneratedText,
    Problem,
    Room,
    Scored,
)
from services.optimizer.steps import Step
from services.optimizer.store import Journal
from services.optimizer.tables import ArmRow, EvaluationRow, JobRow, PointRow, StepRow

ENOUGH_CALLS = 20
"""Calls after which the observed cost of a call replaces the guess."""
STEPS_AT_ONCE = 2
"""One more than are needed, so that no call waits for a decision; each adds to what it ignores."""


@dataclass
class Arm:
    """A distinct instruction."""

    n: int
    text: str
    source: str
    trial: int | None = None


@dataclass
class JobState:
    """The job in memory; every change to it was committed first.

    Attributes:
        is_cut_short: the budget or the time ended a step before all of it was bought.
        n_checking: evaluations of the final check that are handed over or stored.
    """

    job_id: str
    spec: JobSpec
    connections: Connections
    splits: Splits
    plan: FinalCheckPlan
    typical: Cost
    steps: list[Step] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    by_text: dict[str, int] = field(default_factory=dict)
    points: list[PointRow] = field(default_factory=list)
    fingerprint: str | None = None
    answers: dict[tuple[str, int], dict[int, Answered]] = field(default_factory=dict)
    unanswerable: set[tuple[str, int, int]] = field(default_factory=set)
    costs: dict[tuple[int, int], Cost] = field(default_factory=dict)
    told: Cost = field(default_factory=Cost)
    n_told: int = 0
    is_cut_short: bool = False
    n_checking: int = 0
    bills: Bills = field(default_factory=Bills)
    learned: Learned = field(default_factory=Learned)

    @classmethod
    def open(cls, job_id: str, spec: JobSpec, connections: Connections) -> JobState:
        """Return the state of a job that has not begun."""
        splits = split_examples(spec)
        typical = typical_call(spec, connections, splits)
        each = calls_per_evaluation(spec)
        affordable = affordable_calls(spec, typical)
        plan = plan_final_check(
            None if affordable is None else affordable // each,
            len(splits.test),
            spec.task.baseline is not None,
        )
        return cls(job_id, spec, connections, splits, plan, typical)

    def load(self, journal: Journal) -> None:
        """Take in what the database holds.

        Raises:
            JournalDamaged: a row does not match its checksum, or is missing.
        """
        _check(self.job_id, journal)
        for row in journal.steps:
            self.steps.append(_read_step(row))
        for arm in journal.arms:
            self.add_arm(arm)
        self.points.extend(journal.points)
        for evaluation in journal.evaluations:
            self.add_evaluation(evaluation)
        self.n_checking = self._n_settled("test")
        for step in self.search_steps:
            if step.is_done:
                self.tell(step)
        self.fingerprint = journal.fingerprint
        self.learned = Learned.of(journal.learned)

    def add_arm(self, row: ArmRow) -> None:
        """Take in an arm."""
        self.arms.append(Arm(row.n, row.text, row.source, row.trial))
        self.by_text.setdefault(row.text, row.n)

    def add_evaluation(self, row: EvaluationRow) -> None:
        """Take in a stored evaluation."""
        answered = None if row.score is None else Answered(row.score, row.answer)
        tokens = row.prompt_tokens + row.completion_tokens
        cost = Cost(self.calls_each, tokens, row.usd or 0.0)
        self.settle((row.split, row.arm, row.example), answered, cost)

    def settle(self, key: tuple[str, int, int], answered: Answered | None, cost: Cost) -> None:
        """Take in an answer (None: there will be none) and what it cost."""
        split, arm, example = key
        if split == "validation":
            self.costs[arm, example] = cost
        if answered is None:
            self.unanswerable.add(key)
        else:
            self.answers.setdefault((split, arm), {})[example] = answered

    def tell(self, step: Step) -> None:
        """Note that the strategy knows the next step's results."""
        for arm, example in step.pairs:
            cost = self.costs.get((arm, example), Cost())
            self.told = self.told.plus(cost)
            self.bills.add(arm, cost)
        self.is_cut_short |= bool(self.missing(step.pairs, "validation"))
        self.n_told += 1
        step.is_done = True

    def examples(self, split: str) -> tuple[Example, ...]:
        """Return the examples of a split."""
        return self.splits.validation if split == "validation" else self.splits.test

    @property
    def calls_each(self) -> int:
        """Requests that one evaluation needs."""
        return calls_per_evaluation(self.spec)

    @property
    def final_check(self) -> Cost:
        """What the final check is to cost."""
        return self.typical.times(self.plan.reserved_calls * self.calls_each)

    @property
    def keep(self) -> Cost:
        """What the search must leave for the final check, which may have begun."""
        n_left = max(self.plan.reserved_calls - self.n_checking, 0)
        return self.typical.times(n_left * self.calls_each)

    def average_call(self) -> Cost:
        """Return what a call costs on average: observed, or guessed before enough were made."""
        n = self.told.calls
        if n < ENOUGH_CALLS:
            return self.typical
        return Cost(1, max(self.told.tokens // n, 1), self.told.usd / n)

    @property
    def search_steps(self) -> list[Step]:
        """The search's steps so far."""
        return [step for step in self.steps if step.kind == "search"]

    def is_bought(self, split: str, arm: int, example: int) -> bool:
        """Whether nothing more is to be asked for this pair."""
        return (
            example in self.answers.get((split, arm), {})
            or (split, arm, example) in self.unanswerable
        )

    def missing(self, pairs: Iterable[tuple[int, int]], split: str) -> list[tuple[int, int]]:
        """Return the pairs that have no answer yet."""
        return [pair for pair in pairs if not self.is_bought(split, *pair)]

    def n_searched(self) -> int:
        """Number of evaluations of the search that are stored, those without an answer included."""
        return self._n_settled("validation")

    def _n_settled(self, split: str) -> int:
        answered = sum(len(found) for (of, _), found in self.answers.items() if of == split)
        return answered + sum(of == split for of, _, _ in self.unanswerable)

    def decided_pairs(self) -> int:
        """Number of evaluations that the search has decided on."""
        return sum(len(step.pairs) for step in self.search_steps)

    def trials_decided(self) -> int:
        """Number of distinct instructions that the search has decided to try."""
        return len({arm for step in self.search_steps for arm, _ in step.pairs})

    @property
    def in_flight(self) -> int:
        """Calls that the target takes at once."""
        return int(str(self.connections.target.limits.get("in_flight") or 32))

    @property
    def handed_over(self) -> int:
        """Evaluations that are with the scorer at once.

        Half as many again as the target takes, so that the next call is always at hand there
        (decision 0020).
        """
        return self.in_flight + self.in_flight // 2

    def problem(self) -> Problem:
        """Return what the strategy may know of the job."""
        affordable = affordable_calls(self.spec, self.typical)
        if affordable is not None and self.spec.budget.calls is None:
            affordable *= GUESS_MARGIN
        return Problem(
            dim=self.spec.generator.intrinsic_dim,
            n_validation=len(self.splits.validation),
            seed=self.spec.seed,
            given=tuple(arm.text for arm in self.arms if arm.source in {"baseline", "given"}),
            calls=None
            if affordable is None
            else max(affordable // self.calls_each - self.plan.reserved_calls, 0),
            trials=self.spec.budget.trials,
            calls_per_round=min(max(self.in_flight, 16), 64) // STEPS_AT_ONCE,
            stop_score=self.spec.stop.score,
        )

    def room(self, row: JobRow) -> Room:
        """Return what is left for the search.

        A cached answer counts like a bought one, so that the same spec and seed give the same
        trials whether or not an earlier job has paid for some of the answers.
        """
        budget, bounds, average = self.spec.budget, [], self.average_call()
        wasted = row.failed_calls + row.in_doubt_calls
        # what is in flight counts as average: what it cost so far depends on who answered first
        n_flying = sum(len(step.pairs) for step in self.search_steps[self.n_told :])
        used = self.told.plus(average.times(n_flying * self.calls_each))
        if budget.calls is not None:
            planned = self.decided_pairs() * self.calls_each
            bounds.append(budget.calls - self.final_check.calls - planned - wasted)
        if budget.tokens is not None:
            left = budget.tokens - self.final_check.tokens - used.tokens - row.in_doubt_tokens
            bounds.append(left // average.tokens)
        if budget.usd is not None and average.usd > 0:
            cash = budget.usd - self.final_check.usd - used.usd - row.in_doubt_usd
            bounds.append(int(cash / average.usd))
        calls = max(min(bounds) // self.calls_each, 0) if bounds else None
        trials = None if budget.trials is None else budget.trials - self.trials_decided()
        return Room(calls=calls, trials=trials)

    def texts_of(self, step: Step) -> list[GeneratedText]:
        """Return what the generator wrote for a step's points, as the strategy sees it."""
        return [
            GeneratedText(
                point=row.n, arm=row.arm, text="" if row.arm is None else self.arms[row.arm].text
            )
            for row in self.points
            if row.step == step.number
        ]

    def scores_of(self, step: Step) -> list[Scored]:
        """Return a step's scores in (arm, example) order, as the strategy sees them."""
        found = []
        for arm, example in sorted(step.pairs):
            answer = self.answers.get(("validation", arm), {}).get(example)
            if answer is not None:
                found.append(Scored(arm, example, answer.score, answer.answer))
        return found


def _read_step(row: StepRow) -> Step:
    if store.checksum(row.decision) != row.checksum:
        raise JournalDamaged(f"step {row.step} of job {row.job_id} was changed after it was stored")
    return Step(row.step, row.kind, row.decision, row.is_done)


def _check(job_id: str, journal: Journal) -> None:
    """Refuse a journal from which rows are missing, or in which one was edited."""
    _check_rows(job_id, "points", journal.points, journal.counted[0])
    _check_rows(job_id, "instructions", journal.arms, journal.counted[1])
    _check_rows(job_id, "answers", journal.evaluations, journal.counted[2])
    if [row.step for row in journal.steps] != list(range(len(journal.steps))):
        raise JournalDamaged(f"a step of job {job_id} is missing")


def _check_rows(job_id: str, what: str, found: Sequence[SealedRow], counted: int) -> None:
    if len(found) != counted:
        raise JournalDamaged(f"job {job_id} has {len(found)} {what}; {counted} were stored")
    if not all(is_intact(row) for row in found):
        raise JournalDamaged(f"{what} of job {job_id} were changed after they were stored")


def given_arms(spec: JobSpec) -> list[tuple[str, str]]:
    """Return the instructions a job starts from, each text once."""
    texts = [(text, "given") for text in spec.task.instructions]
    if spec.task.baseline is not None:
        texts.insert(0, (spec.task.baseline, "baseline"))
    seen: dict[str, str] = {}
    for text, source in texts:
        seen.setdefault(text, source)
    return list(seen.items())
