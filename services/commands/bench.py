"""`bench`: a user's own task under several strategies at one budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructzero.contracts import JobSpec, StrategyName, StrategySpec
from instructzero.errors import InvalidRequest
from services.commands.bench_table import (
    COLUMNS,
    NUMBERS,
    BenchRow,
    bench_row,
    cells,
    counted_calls,
    document,
    mean_lines,
    paid_line,
    terminal_table,
)
from services.commands.console import Screen
from services.commands.job_files import load_job
from services.commands.record import REPORTS, save_page
from services.commands.series import (
    Entry,
    Finished,
    Outcome,
    carry_out,
    labelled,
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
        screen.write(json.dumps(document(bench, rows, found), indent=2, ensure_ascii=False))
    else:
        screen.table(terminal_table(spec.name, rows))
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
