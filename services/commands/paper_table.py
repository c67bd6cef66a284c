"""The rows of `paper-tasks`, as a table for a terminal, a page and a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from instructzero.contracts import Measured
from services.commands.bench_table import counted_calls
from services.commands.console import harmless
from services.commands.paper_scores import PaperScore, paper_metric, paper_score
from services.commands.series import Finished, Outcome, paid_calls
from services.report import wording


@dataclass(frozen=True)
class PaperRow:
    """One task: what was measured here, what the paper says, what it cost, or why there is none."""

    task: str
    metric: str
    job_id: str | None
    winner: str | None
    score: float | None
    interval: tuple[float, float] | None
    n: int | None
    paper_instructzero: float | None
    paper_ape: float | None
    calls: int
    paid: int
    usd: float | None
    problem: str | None

    @property
    def held_out(self) -> Measured | None:
        """Return the held-out score with its interval."""
        if self.score is None or self.interval is None or self.n is None:
            return None
        return Measured(score=self.score, interval=self.interval, n=self.n)


def paper_row(outcome: Outcome) -> PaperRow:
    """Return what the table says of one task."""
    task, record = outcome.entry.labels["paper-task"], outcome.record
    usage = record.job.usage if record is not None else None
    result = record.result if record is not None else None
    best = result.best if result is not None else None
    test = best.test if best is not None else None
    paper = paper_score(task)
    problem = outcome.problem
    if problem is None and test is None:
        problem = "the winner was not measured on fresh examples: too few of them, or of calls"
    return PaperRow(
        task=task,
        metric=str(paper_metric(task)),
        job_id=record.job.id if record is not None else None,
        winner=best.instruction if best is not None else None,
        score=test.score if test is not None else None,
        interval=test.interval if test is not None else None,
        n=test.n if test is not None else None,
        paper_instructzero=paper.instructzero if paper is not None else None,
        paper_ape=paper.ape if paper is not None else None,
        calls=counted_calls(outcome),
        paid=usage.calls if usage is not None else 0,
        usd=usage.usd if usage is not None else None,
        problem=problem,
    )


def mean_row(rows: Sequence[PaperRow]) -> tuple[int, float, PaperScore] | None:
    """Return the means over the tasks that are both measured here and in the paper."""
    both = [
        (row.score, PaperScore(row.paper_instructzero, row.paper_ape))
        for row in rows
        if row.score is not None
        and row.paper_instructzero is not None
        and row.paper_ape is not None
    ]
    if not both:
        return None
    n = len(both)
    return (
        n,
        sum(score for score, _ in both) / n,
        PaperScore(
            sum(paper.instructzero for _, paper in both) / n,
            sum(paper.ape for _, paper in both) / n,
        ),
    )


def document(rows: Sequence[PaperRow], found: Finished) -> dict[str, Any]:
    """Return what `--json` prints."""
    mean = mean_row(rows)
    return {
        "rows": [asdict(row) for row in rows],
        "mean": None
        if mean is None
        else {
            "tasks": mean[0],
            "score": mean[1],
            "paper_instructzero": mean[2].instructzero,
            "paper_ape": mean[2].ape,
        },
        "paid_calls": paid_calls(found.outcomes),
        "paid_calls_of_this_run": found.paid_now,
        "usd": sum(row.usd for row in rows if row.usd is not None),
    }


COLUMNS = (
    "task", "metric", "held-out score", "90 % interval", "n", "InstructZero (paper)",
    "APE (paper)", "calls", "cost", "instruction",
)  # fmt: skip
WIDTHS = {
    "task": 0,  # as wide as the longest
    "held-out score": 8,
    "90 % interval": 12,
    "InstructZero (paper)": 12,
    "APE (paper)": 7,
    "calls": 6,
    "instruction": None,
}
"""What fits a terminal, and how wide; the page has all columns."""
NUMBERS = frozenset({"held-out score", "n", "InstructZero (paper)", "APE (paper)", "calls", "cost"})


def cells(row: PaperRow) -> tuple[str, ...]:
    """Return one row as texts, in the order of `COLUMNS`."""
    winner = None if row.winner is None else wording.shown_instruction(row.winner)
    return (
        row.task,
        row.metric,
        wording.score(row.score),
        wording.interval(row.interval),
        wording.count(row.n),
        wording.score(row.paper_instructzero),
        wording.score(row.paper_ape),
        wording.count(row.calls),
        wording.usd(row.usd) if row.usd is not None else wording.NOTHING,
        row.problem or winner or wording.NOTHING,
    )


def mean_cells(rows: Sequence[PaperRow]) -> tuple[str, ...] | None:
    """Return the row of means as texts, None where there is none."""
    found = mean_row(rows)
    if found is None:
        return None
    n, ours, paper = found
    return (
        f"mean of {wording.count(n, 'task')}",
        "",
        wording.score(ours),
        "",
        "",
        wording.score(paper.instructzero),
        wording.score(paper.ape),
        wording.count(sum(row.calls for row in rows)),
        wording.usd(sum(row.usd for row in rows if row.usd is not None)),
        "",
    )


def terminal_table(strategy: str, rows: Sequence[PaperRow]) -> Table:
    """Return what fits a terminal: the page has all columns."""
    table = Table(box=box.SIMPLE_HEAD, title=f"instruction induction, strategy {strategy}")
    mean = mean_cells(rows)
    shown = [*map(cells, rows), *([mean] if mean is not None else [])]
    longest = max(len(texts[0]) for texts in shown)
    for column in COLUMNS:
        if column in WIDTHS:
            width = longest if column == "task" else WIDTHS[column]
            side: JustifyMethod = "right" if column in NUMBERS else "left"
            table.add_column(column, justify=side, overflow="fold", width=width)
    for number, texts in enumerate(shown, start=1):
        is_mean = number > len(rows)
        if is_mean:
            table.add_section()
        pairs = zip(COLUMNS, texts, strict=True)
        kept = [harmless(cell) for column, cell in pairs if column in WIDTHS]
        table.add_row(*(Text(cell, style="bold" if is_mean else "") for cell in kept))
    return table
