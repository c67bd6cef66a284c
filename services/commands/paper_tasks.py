"""`paper-tasks`: every task of the instruction-induction benchmark, beside the paper's scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from instructzero.contracts import Budget, DatasetSpec, JobSpec, MetricSpec, StrategySpec
from instructzero.datasets import load_task
from instructzero.errors import InvalidRequest, InvalidSpec
from services.commands.bench import strategy_names
from services.commands.console import Screen
from services.commands.paper_scores import PAPER_CALLS, paper_metric
from services.commands.paper_table import (
    COLUMNS,
    NUMBERS,
    PaperRow,
    cells,
    document,
    mean_cells,
    paper_row,
    terminal_table,
)
from services.commands.record import REPORTS, save_page
from services.commands.series import Entry, Finished, carry_out, paid_calls, series_hash
from services.commands.signals import INTERRUPTED
from services.embedded import Options, registered_targets
from services.report import wording

DEFAULT_CALLS = 500
"""A sixth of the paper's; enough to measure a winner on 50 fresh examples."""


@dataclass(frozen=True)
class PaperRequest:
    """What `paper-tasks` was asked to do."""

    options: Options
    folder: Path
    strategy: str
    calls: int | None
    trials: int | None
    tasks: str | None
    target: str | None
    seed: int
    report: Path | None
    as_json: bool
    is_agreed: bool


async def run_paper_tasks(request: PaperRequest, screen: Screen) -> int:
    """Run one job per task file, show the paper's table, and return the exit code.

    Raises:
        InvalidRequest: the folder, an option or the targets cannot be used, or the cost was not
            agreed to.
    """
    tasks = task_names(request.folder, request.tasks)
    (strategy,) = _one_strategy(request.strategy)
    target = request.target or only_target(request.options)
    budget = budget_of(request.calls, request.trials)
    entries = [_entry(request, task, strategy, target, budget) for task in tasks]
    found = await carry_out(request.options, entries, screen, is_agreed=request.is_agreed)
    rows = [paper_row(outcome) for outcome in found.outcomes]
    if request.as_json:
        screen.write(json.dumps(document(rows, found), indent=2, ensure_ascii=False))
    else:
        screen.table(terminal_table(strategy, rows))
        screen.say(f"{wording.count(found.paid_now, 'call')} paid by this run.")
    await _write_page(request, (strategy, target, budget), rows, found, screen)
    if found.is_interrupted:
        screen.say("Stopped. The same command goes on; what is paid for is not bought again.")
        return INTERRUPTED
    return 0 if all(row.score is not None for row in rows) else 1


def task_names(folder: Path, raw: str | None) -> list[str]:
    """Return the tasks of a folder, or those of them that a list with commas names.

    Raises:
        InvalidRequest: there is no such folder, no task in it, or not one that was named.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder; name the one that holds induce/ and execute/")
    there = sorted(file.stem for file in (folder / "induce").glob("*.json"))
    if not there:
        raise InvalidRequest(f"{folder} has no induce/*.json, so there is nothing to do")
    if raw is None:
        return there
    named = list(dict.fromkeys(name.strip() for name in raw.split(",") if name.strip()))
    if not named:
        raise InvalidRequest(f"--tasks names no task; there are {', '.join(there)}")
    missing = [name for name in named if name not in there]
    if missing:
        raise InvalidRequest(f"--tasks: there is no {missing[0]!r}; there are {', '.join(there)}")
    return named


def budget_of(calls: int | None, trials: int | None) -> Budget:
    """Return the budget of each job.

    Raises:
        InvalidRequest: both bounds were given.
    """
    if calls is not None and trials is not None:
        raise InvalidRequest("give --calls or --trials, not both")
    if trials is not None:
        return Budget(trials=trials)
    return Budget(calls=calls or DEFAULT_CALLS)


def only_target(options: Options) -> str:
    """Return the target that is registered, if it is the only one.

    Raises:
        InvalidRequest: there are several, or they are registered at a scorer elsewhere.
    """
    if options.scorer_url is not None:
        raise InvalidRequest("name the target: --target NAME")
    names = [target.view().name for target in registered_targets(options)]
    if len(names) != 1:
        raise InvalidRequest(f"name the target: --target NAME; registered are {', '.join(names)}")
    return names[0]


def _one_strategy(raw: str) -> tuple[str, ...]:
    names = strategy_names(raw, option="--strategy")
    if len(names) > 1:
        raise InvalidRequest("--strategy takes one; run the command again for another")
    return names


def _entry(request: PaperRequest, task: str, strategy: str, target: str, budget: Budget) -> Entry:
    labels = {"paper-task": task, "strategy": strategy, "seed": str(request.seed)}
    dataset = DatasetSpec(
        format="instruction_induction", path=str(request.folder), task=task, seed=request.seed
    )
    try:
        spec = JobSpec(
            name=f"paper: {task}",
            task=load_task(dataset),
            metric=MetricSpec(name=paper_metric(task)),
            target=target,
            strategy=StrategySpec.model_validate(strategy),
            budget=budget,
            seed=request.seed,
            labels=labels,
        )
    except InvalidSpec as error:
        return Entry(task, labels, None, error.errors[0].detail if error.errors else error.detail)
    except ValidationError as error:
        return Entry(task, labels, None, str(error.errors()[0]["msg"]))
    return Entry(task, labels, spec)


async def _write_page(
    request: PaperRequest,
    plan: tuple[str, str, Budget],
    rows: Sequence[PaperRow],
    found: Finished,
    screen: Screen,
) -> None:
    from services.report import comparison_plots, tables  # load matplotlib

    strategy, target, budget = plan
    points = [
        comparison_plots.PaperPoint(row.task, row.held_out, row.paper_instructzero, row.paper_ape)
        for row in rows
    ]
    mean = mean_cells(rows)
    page = tables.TablePage(
        title="The paper's tasks",
        lead=f"{wording.count(len(rows), 'task')} of instruction induction, strategy {strategy}.",
        columns=COLUMNS,
        numbers=NUMBERS,
        texts=frozenset({"instruction"}),
        rows=[*map(cells, rows), *([mean] if mean is not None else [])],
        picture=comparison_plots.beside_the_paper(points),
        caption="Each winner on fresh examples, with its 90 % interval.",
        notes=_notes(rows, found),
        settings=_settings(request, strategy, target, budget),
    )
    key = series_hash(strategy, target, budget.model_dump_json(), str(request.seed))
    where = request.report or REPORTS / f"paper-tasks-{key}.html"
    try:
        screen.say(f"Report: {await save_page(tables.render_table_page(page), where)}")
    except InvalidRequest as error:  # the table is out already: it is what was paid for
        screen.problem(error.detail)


def _notes(rows: Sequence[PaperRow], found: Finished) -> list[str]:
    missing = sum(row.score is None for row in rows)
    notes = [
        "The paper's scores are read from the bars of its Figure 4 (right to about .01). They "
        f"were measured on gpt-3.5-turbo with about {PAPER_CALLS:,} calls a task: on another "
        "target they are no bar to clear, and a repetition by others found them lower.",
        f"{wording.count(paid_calls(found.outcomes), 'call')} were paid for all of it.",
    ]
    if missing:
        notes.append(
            f"{wording.count(missing, 'task')} have no held-out score; the row says why. The means "
            "are over the tasks that have one and that the paper has too."
        )
    return notes


def _settings(
    request: PaperRequest, strategy: str, target: str, budget: Budget
) -> Mapping[str, str]:
    bounds = budget.model_dump(exclude_none=True)
    return {
        "Target": target,
        "Strategy": strategy,
        "Generator model": request.options.model,
        "Budget of each job": ", ".join(f"{name} {value:,}" for name, value in bounds.items()),
        "Seed": str(request.seed),
    }
