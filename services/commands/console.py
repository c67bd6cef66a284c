"""What commands show: lines and a progress bar on standard error, tables on standard output.

Text of users and models is shown as text: it cannot style, move the cursor, or ring.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from instructzero.contracts import Estimate, Job, Measured, Result, Usage, UsageReport
from services.report import wording

log = logging.getLogger(__name__)
SPACES = "\n\u00a0\u202f"
"""Harmless, though Python does not call them printable."""
PLAIN_WIDTH = 100
SECONDS_BETWEEN_LINES = 5.0
VERDICT_STYLE = {"better": "green", "not_better": "yellow", "not_enough_data": "yellow"}


def harmless(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(
        character if character.isprintable() or character in SPACES else "\ufffd"
        for character in text.replace("\t", "    ")
    )


class Screen:
    """The two streams of a command."""

    def __init__(self) -> None:
        self._err, self._out = _console(is_error=True), _console(is_error=False)

    def say(self, text: str = "", *, style: str = "") -> None:
        """Show a line to the person who waits."""
        self._err.print(Text(harmless(text), style=style), soft_wrap=True)

    def stopping(self, hint: str) -> None:
        """Show what happens after a signal, on a line after the terminal's own `^C`."""
        self.say()
        self.say(hint)

    def problem(self, text: str) -> None:
        """Show what went wrong."""
        self._err.print(Text.assemble(("error: ", "bold red"), harmless(text)), soft_wrap=True)

    def write(self, text: str) -> None:
        """Write plain text to standard output, as it is."""
        self._out.file.write(text if text.endswith("\n") else f"{text}\n")
        self._out.file.flush()

    def table(self, table: Table) -> None:
        """Show a table on standard output."""
        self._out.print(table)

    def progress(self, *, is_quiet: bool = False) -> Progress:
        """Return a progress display: a bar on a terminal, lines elsewhere."""
        return Progress(self._err, is_quiet=is_quiet)

    def estimate(self, found: Estimate) -> None:
        """Show what a job will cost."""
        self.say(
            f"Estimate: {wording.estimate(found)}; the final check takes up to "
            f"{wording.count(found.final_check_calls, 'call')} of these."
        )
        for note in found.notes:
            self.say(f"  {note}", style="dim")

    def result(self, job: Job, result: Result) -> None:
        """Show a finished job."""
        self._out.print(result_table(job, result))

    def usage(self, report: UsageReport) -> None:
        """Show what jobs have cost."""
        self._out.print(usage_table(report))

    def jobs(self, jobs: Sequence[Job]) -> None:
        """Show a list of jobs."""
        self._out.print(jobs_table(jobs))


class LogScreen(Screen):
    """The screen of a server that nobody sits before: what it says is a line of its log."""

    def say(self, text: str = "", *, style: str = "") -> None:
        """Log a line."""
        log.info(text)

    def stopping(self, hint: str) -> None:
        """Log what happens after a signal."""
        log.info(hint)


def _console(*, is_error: bool) -> Console:
    console = Console(stderr=is_error, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def progress_line(job: Job) -> str:
    """Return how far a job is, in one line."""
    budget, progress = job.spec.budget, job.progress
    calls = wording.count(progress.calls)
    if budget.calls is not None:
        calls += f" of {wording.count(budget.calls)}"
    parts = [f"{calls} calls", wording.count(progress.trials, "instruction")]
    if job.usage.usd is not None:
        ahead = job.forecast.usd if job.forecast and not job.status.is_finished else None
        of = "" if ahead is None else f" of about {wording.forecast(ahead, wording.usd)}"
        parts.append(wording.usd(job.usage.usd) + of)
    if progress.eta_seconds is not None:
        parts.append(f"about {wording.seconds(progress.eta_seconds)} left")
    return ", ".join(parts)


def leader_line(job: Job) -> str:
    """Return the leader, or what is waited for."""
    if job.best is None:
        return "best: none yet"
    best = job.best
    found = Measured(score=best.score, interval=best.interval, n=best.n_examples)
    return f"best {wording.measured(found)}: {wording.shown_instruction(best.instruction)}"


class Progress:
    """Follows one job; used as a context manager."""

    def __init__(self, console: Console, *, is_quiet: bool) -> None:
        self._console = console
        self._is_quiet = is_quiet
        self._live: Live | None = None
        self._last = ("", "", "")
        self._said_at = -SECONDS_BETWEEN_LINES

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._is_quiet:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, job: Job) -> None:
        """Show the job as it is now."""
        if self._is_quiet:
            return
        if self._live is not None:
            self._live.update(_bar(job, self._console.width))
            return
        leader, waits = leader_line(job), wording.conditions(job.conditions)
        now = (str(job.status), leader, waits)
        is_due = time.monotonic() - self._said_at >= SECONDS_BETWEEN_LINES
        if now != self._last or is_due:
            waiting = f" [{waits}]" if waits else ""
            state = "" if job.status == "running" else f" ({wording.STATUS_WORDS[job.status]})"
            line = f"{progress_line(job)}{state}{waiting} | {leader}"
            self._console.print(Text(harmless(line).replace("\n", " ")), soft_wrap=True)
            self._last, self._said_at = now, time.monotonic()


def _bar(job: Job, width: int) -> Group:
    share = min(max(job.progress.share or 0.0, 0.0), 1.0)
    lines = [
        Text(progress_line(job), overflow="ellipsis", no_wrap=True),
        Text(harmless(leader_line(job)).replace("\n", " "), overflow="ellipsis", no_wrap=True),
    ]
    waits = wording.conditions(job.conditions)
    if waits or job.status != "running":
        lines.append(Text(waits or wording.STATUS_WORDS[job.status], style="yellow"))
    return Group(ProgressBar(total=1.0, completed=share, width=min(width, 72)), *lines)


def result_table(job: Job, result: Result) -> Table:
    """Return a finished job in a few rows."""
    table = Table(box=box.ROUNDED, show_header=False, title=harmless(result.name))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value, style in _result_rows(job, result):
        table.add_row(name, Text(harmless(value), style=style))
    return table


def _result_rows(job: Job, result: Result) -> Iterable[tuple[str, str, str]]:
    yield "status", wording.STATUS_WORDS[result.status], ""
    if result.status_reason is not None:
        yield "reason", f"{result.status_reason.message} ({result.status_reason.code})", "red"
    if result.stop_reason is not None:
        yield "ended because", wording.stop_reason(result.stop_reason), ""
    if result.best is not None:
        yield "winner", wording.shown_instruction(result.best.instruction), "bold"
        yield "held-out score", wording.measured(result.best.test), "bold"
        yield "validation score", wording.measured(result.best.validation), ""
    if result.baseline is not None:
        yield "baseline", wording.shown_instruction(result.baseline.instruction), ""
        yield "baseline, held out", wording.measured(result.baseline.test), ""
    if result.comparison is not None:
        found = result.comparison
        yield "difference", wording.difference(found), ""
        yield "verdict", wording.verdict(found), VERDICT_STYLE[found.verdict]
        yield "", found.explanation, ""
    yield "cost", _cost(job, result), ""
    yield "tried", wording.count(result.trials, "instruction"), ""
    yield "job", result.job_id, ""


def _cost(job: Job, result: Result) -> str:
    usage = result.usage
    tokens = usage.prompt_tokens + usage.completion_tokens
    parts = [wording.count(usage.calls, "call"), wording.count(tokens, "token")]
    if usage.usd is not None:
        parts.insert(0, wording.usd(usage.usd))
    for number, what in (
        (usage.cached_calls, "from the cache"),
        (usage.failed_calls, "failed"),
        (usage.in_doubt_calls, "in doubt"),
    ):
        if number:
            parts.append(f"{wording.count(number)} {what}")
    return ", ".join([*parts, wording.elapsed(job)])


def jobs_table(jobs: Sequence[Job]) -> Table:
    """Return a list of jobs, one a row."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("job", "name", "status", "calls", "best so far", "created"):
        table.add_column(
            name, justify="right" if name == "calls" else "left", no_wrap=name == "job"
        )
    for job in jobs:
        best = "" if job.best is None else wording.score(job.best.score)
        table.add_row(
            Text(job.id, overflow="fold"),
            Text(harmless(job.name), overflow="fold"),
            str(job.status),
            wording.count(job.usage.calls),
            best,
            job.created_at.strftime("%Y-%m-%d %H:%M"),
        )
    return table


def usage_table(report: UsageReport) -> Table:
    """Return what jobs have cost, one group a row, and the sum of all pages."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    is_by_job = report.group_by == "job"
    table.add_column(report.group_by, footer="all", overflow="fold", no_wrap=is_by_job)
    if is_by_job:
        table.add_column(
            "name", footer=wording.count(report.jobs, "job"), overflow="fold", min_width=8
        )
    else:
        table.add_column("jobs", footer=wording.count(report.jobs), justify="right")
    names = ("calls", "cached", "in doubt", "tokens", "money")
    for name, footer in zip(names, _numbers(report.total), strict=True):
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for group in report.data:
        shown = wording.NOTHING if group.group is None else group.group
        beside = (group.name or "") if is_by_job else wording.count(group.jobs)
        texts = (Text(harmless(text), overflow="fold") for text in (shown, beside))
        table.add_row(*texts, *_numbers(group.usage))
    return table


def _numbers(usage: Usage) -> tuple[str, ...]:
    tokens = usage.prompt_tokens + usage.completion_tokens
    counts = (usage.calls, usage.cached_calls, usage.in_doubt_calls, tokens)
    money = wording.NOTHING if usage.usd is None else wording.usd(usage.usd)
    return (*map(wording.count, counts), money)
