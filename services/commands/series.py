"""A series of jobs in this process: estimated together, asked about once, run one after the other.

Each job carries labels that say which series it belongs to. Running the series again finds the jobs
by them: finished ones are read, others go on, and only what is missing is made.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import typer

from instructzero.client import AsyncClient
from instructzero.contracts import Estimate, Job, JobSpec, JobStatus
from instructzero.errors import InvalidRequest, InvalidSpec
from services.commands.connection import Local, open_local
from services.commands.console import Screen
from services.commands.failures import sentence
from services.commands.local_run import check_targets, work
from services.commands.record import Record, read_record
from services.commands.signals import Stopper
from services.embedded import Options
from services.report import wording

FREE_USD = 1.0
"""A series that costs more is asked about."""
MOST_LABELS = 20
ENDED_BADLY = frozenset({JobStatus.FAILED, JobStatus.CANCELLED})
STOPPING = "Stopping: answers that are paid for are kept. Ctrl-C again quits at once."


@dataclass(frozen=True)
class Entry:
    """One job of a series: `labels` tell it from the others; without a spec, `problem` says why."""

    name: str
    labels: Mapping[str, str]
    spec: JobSpec | None
    problem: str | None = None


@dataclass(frozen=True)
class Planned:
    """An entry with the job that there is already and what is left to pay."""

    entry: Entry
    job: Job | None = None
    n_before: int = 0
    estimate: Estimate | None = None
    problem: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is something left to run."""
        return self.problem is None and (self.job is None or not self.job.status.is_finished)


@dataclass(frozen=True)
class Outcome:
    """How an entry ended; `record` is None where there is no job."""

    entry: Entry
    record: Record | None
    problem: str | None = None

    @property
    def is_success(self) -> bool:
        """Whether the job succeeded."""
        return self.record is not None and self.record.job.status is JobStatus.SUCCEEDED


@dataclass(frozen=True)
class Finished:
    """A series that was carried out as far as it went."""

    outcomes: tuple[Outcome, ...]
    paid_before: int
    is_interrupted: bool

    @property
    def paid_now(self) -> int:
        """Return the calls that this run has paid for."""
        return paid_calls(self.outcomes) - self.paid_before


def paid_calls(outcomes: Sequence[Outcome]) -> int:
    """Return the calls that all jobs have really paid for."""
    return sum(found.record.job.usage.calls for found in outcomes if found.record is not None)


def series_hash(*content: str) -> str:
    """Return what tells one series from another."""
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]


def labelled(spec: JobSpec, labels: Mapping[str, str]) -> JobSpec:
    """Return the spec with the series' labels beside its own.

    Raises:
        InvalidSpec: there is no room for them.
    """
    together = {**spec.labels, **labels}
    if len(together) > MOST_LABELS:
        raise InvalidSpec(
            f"labels: {', '.join(labels)} are added to the job's own; "
            f"leave at most {MOST_LABELS - len(labels)} of these"
        )
    return spec.model_copy(update={"labels": together})


async def carry_out(
    options: Options, entries: Sequence[Entry], screen: Screen, *, is_agreed: bool
) -> Finished:
    """Estimate a series, ask where it is dear, run what is open, and read how it ended.

    Raises:
        InvalidRequest: the targets cannot be used, or nobody agreed to the cost.
        Exit: a person said no to it.
    """
    for spec in (entry.spec for entry in entries):
        if spec is not None:
            check_targets(spec, options)
            break
    async with open_local(options, with_runner=False) as local:
        planned = [await _plan(local.client, entry) for entry in entries]
    to_run = [plan for plan in planned if plan.is_open]
    is_interrupted = False
    if to_run:
        _agree(planned, screen, is_agreed=is_agreed)
        stopper = Stopper(STOPPING)
        is_interrupted = not await _run(options, to_run, screen, stopper)
    paid_before = sum(plan.job.usage.calls for plan in planned if plan.job is not None)
    async with open_local(options, with_runner=False) as local:
        outcomes = [await _outcome(local.client, plan) for plan in planned]
    return Finished(tuple(outcomes), paid_before, is_interrupted)


async def _plan(client: AsyncClient, entry: Entry) -> Planned:
    if entry.spec is None:
        return Planned(entry, problem=entry.problem)
    known = await _jobs_of(client, entry)
    usable = [job for job in known if job.status not in ENDED_BADLY]
    plan = Planned(entry, job=usable[0] if usable else None, n_before=len(known))
    if not plan.is_open:
        return plan
    try:
        return replace(plan, estimate=(await client.estimate(entry.spec)).estimate)
    except InvalidRequest as error:
        return replace(plan, problem=sentence(error))


async def _jobs_of(client: AsyncClient, entry: Entry) -> list[Job]:
    """Return the jobs that were made for an entry, newest first."""
    assert entry.spec is not None  # noqa: S101 - the callers saw to it
    wanted = entry.spec.spec_hash()
    found = await client.list(labels=entry.labels, limit=200)
    return [job for job in found.data if job.spec_hash == wanted]


def _agree(planned: Sequence[Planned], screen: Screen, *, is_agreed: bool) -> None:
    """Say what the series will cost, and ask where that is more than a little.

    Raises:
        InvalidRequest: nobody is there to ask.
        Exit: the answer was no.
    """
    to_run = [plan for plan in planned if plan.is_open]
    usd = _say_cost(to_run, len(planned), screen)
    if is_agreed or usd is None or usd <= FREE_USD:
        return
    question = f"This will cost about {wording.usd(usd)}. Go on?"
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"this will cost about {wording.usd(usd)}; say --yes to agree, or lower --calls"
        )
    if not typer.confirm(question, err=True):
        screen.say("Nothing was spent.")
        raise typer.Exit(1)


def _say_cost(to_run: Sequence[Planned], n_all: int, screen: Screen) -> float | None:
    """Say what the open jobs will cost together, and return the money as far as it is known."""
    calls = tokens = paid = 0
    amounts: list[float] = []
    for plan in to_run:
        if plan.estimate is None:
            continue
        spent = plan.job.usage if plan.job is not None else None
        paid += spent.calls if spent is not None else 0
        calls += max(plan.estimate.calls - (spent.calls if spent is not None else 0), 0)
        tokens += plan.estimate.prompt_tokens + plan.estimate.completion_tokens
        if plan.estimate.usd is not None:
            already = (spent.usd or 0.0) if spent is not None else 0.0
            amounts.append(max(plan.estimate.usd - already, 0.0))
    usd = sum(amounts) if amounts else None
    money = "no price is set, so money is not estimated" if usd is None else wording.usd(usd)
    screen.say(
        f"Estimate for {wording.count(len(to_run), 'job')}"
        f"{f' of {n_all:,}' if n_all != len(to_run) else ''}: about "
        f"{wording.count(calls, 'call')}, {wording.count(tokens, 'token')}, {money}. "
        "An answer that two jobs need is paid for once, so it can be less."
    )
    if paid:
        screen.say(f"  {wording.count(paid, 'call')} of jobs that go on are paid for already.")
    return usd


async def _run(
    options: Options, to_run: Sequence[Planned], screen: Screen, stopper: Stopper
) -> bool:
    """Run what is open; return False if it was stopped before the end."""
    if options.generator_url is None:
        screen.say(f"Loading the generator model ({options.model}) …", style="dim")
    async with open_local(options, with_runner=True) as local:
        for number, plan in enumerate(to_run, start=1):
            if stopper.is_asked:
                return False
            screen.say(f"[{number}/{len(to_run)}] {plan.entry.name}", style="bold")
            job = await work(local, await _open_job(local, plan), screen, stopper)
            if stopper.is_asked:
                return False
            if not _may_go_on(job, screen):
                return True
    return True


async def _open_job(local: Local, plan: Planned) -> Job:
    """Return the job that goes on, or make it; two processes that ask at once make one."""
    spec = plan.entry.spec
    assert spec is not None  # noqa: S101 - the plan is open
    if plan.job is None:
        labels = "/".join(plan.entry.labels.values())
        key = series_hash(spec.model_dump_json(), labels, str(plan.n_before))
        return await local.client.create(spec, idempotency_key=f"series-{key}")
    if plan.job.status is JobStatus.PAUSED:
        return await local.client.resume(plan.job.id)
    return plan.job


def _may_go_on(job: Job, screen: Screen) -> bool:
    """Tell of a job that did not succeed; what stopped it may stop the next ones too."""
    if job.status is JobStatus.SUCCEEDED:
        return True
    if job.status_reason is not None:
        screen.problem(job.status_reason.message)
    if job.status is JobStatus.PAUSED or job.progress.evaluations == 0:
        screen.say("The jobs after it would meet the same, so they were not started.")
        return False
    return True


async def _outcome(client: AsyncClient, plan: Planned) -> Outcome:
    if plan.problem is not None or plan.entry.spec is None:
        return Outcome(plan.entry, None, plan.problem)
    known = await _jobs_of(client, plan.entry)
    if not known:
        return Outcome(plan.entry, None, "not started")
    usable = [job for job in known if job.status not in ENDED_BADLY] or known
    record = await read_record(client, usable[0].id)
    return Outcome(plan.entry, record, _problem_of(record.job))


def _problem_of(job: Job) -> str | None:
    if job.status is JobStatus.SUCCEEDED:
        return None
    if job.status_reason is not None:
        return job.status_reason.message
    return wording.STATUS_WORDS[job.status]
