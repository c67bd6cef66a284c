"""`bench`: a user's own task under several strategies at one budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from instructzero.contracts import JobSpec, StrategyName, StrategySpec
from instructzero.errors import InvalidRequest
from services.commands.console import Screen, harmless
from services.commands.job_files import load_job
from services.commands.record import REPORTS, save_page
from services.commands.series import (
    Entry,
    Finished,
    Outcome,
    carry_out,
    labelled,
    paid_calls,
    series_hash,
)
from services.commands.signals import INTERRUPTED
from services.embedded import Options
from services.report import wording

ALL = tuple(str(name) for name in StrategyName)


@dataclass(frozen=True)
class BenchRequest:
    """What `bench` was asked to do."""

    options: Options
    job_file: Path
    strategies: str
    seeds: int
    calls: int | None
    report: Path | None
    as_json: bool
    is_agreed: bool


@dataclass(frozen=True)
class BenchRow:
    """How one strategy did with one seed.

    `calls` is what its budget counts: an answer that another job has paid for counts too. `paid` is
    what was really bought for it, failed requests included.
    """

    strategy: str
    seed: int
    job_id: str | None
    status: str
    winner: str | None
    score: float | None
    interval: tuple[float, float] | None
    n: int | None
    calls: int
    paid: int
    usd: float | None
    seconds: float | None
    problem: str | None


async def run_bench(request: BenchRequest, screen: Screen) -> int:
    """Run every strategy with every seed, show them side by side, and return the exit code.

    Raises:
        InvalidRequest: the job, the strategies or the targets cannot be used, or the cost was not
            agreed to.
    """
    names = strategy_names(request.strategies)
    spec = load_job(request.job_file)
    if request.calls is not None:
        budget = spec.budget.model_copy(update={"calls": request.calls})
        spec = spec.model_copy(update={"budget": budget})
    bench = bench_hash(spec)
    entries = bench_entries(spec, names, request.seeds, bench)
    found = await carry_out(request.options, entries, screen, is_agreed=request.is_agreed)
    rows = [bench_row(outcome) for outcome in found.outcomes]
    if request.as_json:
        screen.write(json.dumps(_document(bench, rows, found), indent=2, ensure_ascii=False))
    else:
        screen.table(_table(spec.name, rows))
        _say_paid(rows, found, screen)
    await _write_page(request, spec, bench, rows, found, screen)
    if found.is_interrupted:
        screen.say("Stopped. The same command goes on; what is paid for is not bought again.")
        return INTERRUPTED
    return 0 if all(outcome.is_success for outcome in found.outcomes) else 1


def strategy_names(raw: str, *, option: str = "--strategies") -> tuple[str, ...]:
    """Return the strategies of a list with commas, each once.

    Raises:
        InvalidRequest: there is none, or one that does not exist.
    """
    names = tuple(dict.fromkeys(name.strip() for name in raw.split(",") if name.strip()))
    if not names:
        raise InvalidRequest(f"{option}: name at least one of {', '.join(ALL)}")
    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise InvalidRequest(f"{option}: there is no {unknown[0]!r}; there are {', '.join(ALL)}")
    return names


def bench_hash(spec: JobSpec) -> str:
    """Return what all jobs of a bench share: the spec apart from strategy, seed and labels.

    A strategy or a seed that is added later therefore joins the jobs there are.
    """
    content = spec.model_dump(mode="json", exclude={"strategy", "seed", "labels"})
    return series_hash(json.dumps(content, sort_keys=True))


def bench_entries(spec: JobSpec, names: Sequence[str], seeds: int, bench: str) -> list[Entry]:
    """Return one job per seed and strategy; whatever is interrupted has whole seeds first."""
    entries = []
    for seed in range(spec.seed, spec.seed + seeds):
        for name in names:
            own = spec.strategy.options if spec.strategy.name == name else {}
            labels = {"bench": bench, "strategy": name, "seed": str(seed)}
            changes = {"strategy": StrategySpec(name=StrategyName(name), options=own), "seed": seed}
            one = labelled(spec.model_copy(update=changes), labels)
            entries.append(Entry(f"{name}, seed {seed}", labels, one))
    return entries


def counted_calls(outcome: Outcome) -> int:
    """Return the calls that a job's budget counts: paid ones, and answers from the cache."""
    from services.optimizer.jobs import calls_per_evaluation

    if outcome.record is None:
        return 0
    job = outcome.record.job
    return job.usage.calls + job.usage.cached_calls * calls_per_evaluation(job.spec)


def bench_row(outcome: Outcome) -> BenchRow:
    """Return what the table says of one job."""
    labels, record = outcome.entry.labels, outcome.record
    job = record.job if record is not None else None
    result = record.result if record is not None else None
    best = result.best if result is not None else None
    test = best.test if best is not None else None
    seconds = None
    if job is not None and job.started_at is not None and job.finished_at is not None:
        seconds = round((job.finished_at - job.started_at).total_seconds(), 1)
    return BenchRow(
        strategy=labels["strategy"],
        seed=int(labels["seed"]),
        job_id=job.id if job is not None else None,
        status=str(job.status) if job is not None else "not_started",
        winner=best.instruction if best is not None else None,
        score=test.score if test is not None else None,
        interval=test.interval if test is not None else None,
        n=test.n if test is not None else None,
        calls=counted_calls(outcome),
        paid=job.usage.calls if job is not None else 0,
        usd=job.usage.usd if job is not None else None,
        seconds=seconds,
        problem=outcome.problem,
    )


def means(rows: Sequence[BenchRow]) -> dict[str, tuple[float, float, float, int]]:
    """Return mean, lowest and highest held-out score, and the seeds, of each strategy."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.score is not None:
            scores.setdefault(row.strategy, []).append(row.score)
    return {
        name: (sum(found) / len(found), min(found), max(found), len(found))
        for name, found in scores.items()
    }


def _document(bench: str, rows: Sequence[BenchRow], found: Finished) -> dict[str, Any]:
    return {
        "bench": bench,
        "rows": [asdict(row) for row in rows],
        "strategies": {
            name: {"score": mean, "lowest": low, "highest": high, "seeds": n}
            for name, (mean, low, high, n) in means(rows).items()
        },
        "calls": sum(row.calls for row in rows),
        "paid_calls": paid_calls(found.outcomes),
        "paid_calls_of_this_run": found.paid_now,
        "usd": _money(rows),
    }


def _money(rows: Sequence[BenchRow]) -> float | None:
    amounts = [row.usd for row in rows if row.usd is not None]
    return round(sum(amounts), 9) if amounts else None


def cells(row: BenchRow) -> tuple[str, ...]:
    """Return one row of the table as texts."""
    held_out = wording.score(row.score) if row.score is not None else "not measured"
    shown = row.problem if row.winner is None else wording.shown_instruction(row.winner)
    return (
        row.strategy,
        str(row.seed),
        shown or wording.NOTHING,
        held_out,
        wording.interval(row.interval),
        wording.count(row.calls),
        wording.count(row.paid),
        wording.usd(row.usd) if row.usd is not None else wording.NOTHING,
        wording.seconds(row.seconds),
    )


COLUMNS = (
    "strategy", "seed", "winner", "held-out score", "90 % interval", "calls", "paid", "cost",
    "time",
)  # fmt: skip
NUMBERS = frozenset({"seed", "held-out score", "calls", "paid", "cost", "time"})


def _table(name: str, rows: Sequence[BenchRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=harmless(name))
    for column in COLUMNS:
        table.add_column(
            column,
            justify="right" if column in NUMBERS else "left",
            overflow="fold",
            min_width=12 if column in {"strategy", "90 % interval"} else None,
        )
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in cells(row)))
    return table


def mean_lines(rows: Sequence[BenchRow]) -> list[str]:
    """Return a line per strategy where there are several seeds."""
    return [
        f"{name}: mean {wording.score(mean)} over {n} seeds ({wording.score(low)} to "
        f"{wording.score(high)})"
        for name, (mean, low, high, n) in means(rows).items()
        if n > 1
    ]


def paid_line(rows: Sequence[BenchRow], found: Finished) -> str:
    """Return how the calls of the budgets compare with what was really paid."""
    counted, paid = sum(row.calls for row in rows), paid_calls(found.outcomes)
    return (
        f"The budgets count {wording.count(counted, 'call')}; {wording.count(paid)} were really "
        f"paid ({wording.count(found.paid_now)} by this run). The rest were answers that an "
        "earlier job had paid for: each counts in the budget of the job that used it, so that no "
        "strategy gains by running later."
    )


def _say_paid(rows: Sequence[BenchRow], found: Finished, screen: Screen) -> None:
    for line in mean_lines(rows):
        screen.say(line)
    screen.say(paid_line(rows, found))


async def _write_page(
    request: BenchRequest,
    spec: JobSpec,
    bench: str,
    rows: Sequence[BenchRow],
    found: Finished,
    screen: Screen,
) -> None:
    if all(outcome.record is None for outcome in found.outcomes):
        return
    from services.report import comparison_plots, tables  # load matplotlib

    curves = [_curve(outcome) for outcome in found.outcomes if outcome.record is not None]
    picture = comparison_plots.best_by_strategy(curves)
    notes = [
        *mean_lines(rows),
        paid_line(rows, found),
        "Each winner was chosen on validation examples and then measured on fresh ones. Where two "
        "intervals overlap, this bench does not tell the strategies apart: more seeds or more test "
        "examples would.",
    ]
    page = tables.TablePage(
        title=f"{spec.name}: strategies side by side",
        lead=f"One task, one budget, {wording.count(len(rows), 'job')}.",
        columns=COLUMNS,
        numbers=NUMBERS,
        texts=frozenset({"winner"}),
        rows=[cells(row) for row in rows],
        picture=picture,
        caption="Left: the leader's score on validation examples, which the search itself sees and "
        "which flatters. Right: each winner on fresh examples, with its 90 % interval.",
        notes=notes,
        settings=_settings(request, spec, bench),
    )
    where = request.report or REPORTS / f"bench-{bench}.html"
    try:
        screen.say(f"Report: {await save_page(tables.render_table_page(page), where)}")
    except InvalidRequest as error:  # the table is out already: it is what was paid for
        screen.problem(error.detail)


def _curve(outcome: Outcome) -> Any:
    from services.report.comparison_plots import Curve
    from services.report.page import leader_points

    record = outcome.record
    assert record is not None  # noqa: S101 - the caller saw to it
    best = record.result.best if record.result is not None else None
    return Curve(
        name=outcome.entry.labels["strategy"],
        points=tuple(leader_points(record.events)),
        held_out=best.test if best is not None else None,
        calls=counted_calls(outcome),
    )


def _settings(request: BenchRequest, spec: JobSpec, bench: str) -> Mapping[str, str]:
    budget = spec.budget.model_dump(exclude_none=True)
    return {
        "Job file": request.job_file.name,
        "Target": spec.target,
        "Metric": str(spec.metric.name),
        "Generator model": request.options.model,
        "Budget of each job": ", ".join(f"{name} {value:,}" for name, value in budget.items()),
        "Examples": f"{len(spec.task.exemplars)} exemplars, {len(spec.task.validation)} "
        f"validation, {len(spec.task.test)} test",
        "Label of the jobs": f"bench={bench}",
    }
