"""The rows of `bench`, as a table for a terminal, a page and a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from services.commands.console import harmless
from services.commands.series import Finished, Outcome, paid_calls
from services.report import wording


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


def document(bench: str, rows: Sequence[BenchRow], found: Finished) -> dict[str, Any]:
    """Return what `--json` prints."""
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


def terminal_table(name: str, rows: Sequence[BenchRow]) -> Table:
    """Return the rows for a terminal."""
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
