"""How many paid calls each strategy needs, side by side on the same landscapes and seeds.

    python -m benchmarks.calls_to_target --smoke          # a minute, for correctness only
    python -m benchmarks.calls_to_target                  # development seeds
    python -m benchmarks.calls_to_target --report         # report seeds; each look is counted
    python -m benchmarks.calls_to_target --report report_2  # the block of report seeds before

Read off every 20 calls (`landscapes.play`): the true score of the instruction that the strategy
would recommend then. *Sustained* is the number of calls from which on it always has 95 % of the
best attainable; *first hit* is where it first has. A run that never gets there counts with its last
call: one of another strategy makes that ratio too low, one of `default` too high.

`--landscapes demo` plays tasks of the bundled demo model: soft prompts, instructions and
answers are the model's own.

Rows are kept by landscape and strategy: a run with some of them only (`--strategies instructzero`)
replaces those and leaves the rest of the file as it was. Rows may have different numbers of runs,
from the same first seed on; ratios are of the seeds that both have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.demo_landscape import DemoLandscape
from benchmarks.landscapes import SPECS, Landscape, Playable, Run, play
from benchmarks.record import RESULTS, commit, record

CHECKPOINTS = (150, 250, 500, 1000, 3000)
FIRST_SEED = {"development": 0, "report": 500_000, "report_2": 300_000}
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "instructzero": {"examples": 20},
    "random": {"examples": 20},
    "ape": {},
}
NAME = "calls_to_target"
LOOKS = f"{NAME}_looks"
SHARE = 0.95
DEMO = "demo"
KINDS = (*SPECS, DEMO)
LEVELS = ("easy", "medium", "hard")
MEASURES = ("sustained", "first_hit")
EARLIER_REPORT = "report_2"
"""An earlier block of report seeds that were played by the same search and read in the same way."""


class Cell(NamedTuple):
    """One run: a strategy on one landscape."""

    landscape: str
    strategy: str
    seed: int
    calls: int


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of paired ratios of calls, another strategy over `default`."""

    mean: float
    low: float
    high: float


def make_landscape(kind: str, seed: int) -> Playable:
    """Return a synthetic landscape, or a task of the demo model."""
    return DemoLandscape(seed) if kind == DEMO else Landscape(SPECS[kind], seed)


def run_cell(cell: Cell) -> Run:
    """Play one run; everything in it follows from the cell."""
    landscape = make_landscape(cell.landscape, cell.seed)
    return play(cell.strategy, landscape, cell.calls, cell.seed, OPTIONS[cell.strategy])


def run_all(cells: Sequence[Cell], workers: int) -> dict[Cell, Run]:
    """Play all runs, `workers` at a time."""
    with ProcessPoolExecutor(workers) as pool:
        runs = track(
            pool.map(run_cell, cells), total=len(cells), description="runs", console=Console()
        )
        return dict(zip(cells, runs, strict=True))


def paired_ratio(theirs: Sequence[float], mine: Sequence[float], seed: int = 0) -> Ratio:
    """Return the geometric mean of theirs / mine with a 95 % bootstrap interval over the seeds."""
    logs = np.log(np.array(theirs)) - np.log(np.array(mine))
    rng = np.random.default_rng(seed)
    means = logs[rng.integers(len(logs), size=(4000, len(logs)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Ratio(float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high)))


def censored(calls: float, run: Run) -> float:
    """Return the calls, or the last call of a run that never got there."""
    return calls if isfinite(calls) else float(run.calls[-1])


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Return one row of the table, with all that ratios and curves are made from."""
    found = {name: [getattr(run, name)(SHARE) for run in runs] for name in MEASURES}
    grid = np.unique(np.geomspace(10, max(run.calls[-1] for run in runs), 100).astype(int))
    scores = np.array([[run.at(int(calls)) / run.best for calls in grid] for run in runs])
    low, high = np.quantile(scores, [0.25, 0.75], axis=0)
    mean = scores.mean(axis=0)
    return {
        "commit": commit(),
        "runs": len(runs),
        "sustained_median": _or_none(float(np.median(found["sustained"]))),
        "sustained_share": float(np.mean(np.isfinite(found["sustained"]))),
        "first_hit_median": _or_none(float(np.median(found["first_hit"]))),
        "score_at": {
            str(calls): float(np.mean([run.at(calls) / run.best for run in runs]))
            for calls in CHECKPOINTS
        },
        "points": float(np.mean([run.n_points for run in runs])),
        "seconds": float(np.mean([run.seconds for run in runs])),
        "last_calls": [run.calls[-1] for run in runs],
        **{name: [_or_none(calls) for calls in values] for name, values in found.items()},
        **{
            f"{name}_censored": [censored(c, run) for c, run in zip(values, runs, strict=True)]
            for name, values in found.items()
        },
        "curve": {
            "calls": grid.tolist(),
            "mean": mean.round(4).tolist(),
            "low": low.round(4).tolist(),
            "high": high.round(4).tolist(),
        },
    }


def compare(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the ratios of another strategy's rows to `default`'s, seed by seed, all together.

    Args:
        pairs: a row of `default` and one of the other strategy, of the same landscapes.
    """
    counts = [min(mine["runs"], theirs["runs"]) for mine, theirs in pairs]
    found: dict[str, Any] = {"runs": sum(counts)}
    for name in MEASURES:
        mine, theirs = (
            [
                calls
                for pair, count in zip(pairs, counts, strict=True)
                for calls in pair[side][f"{name}_censored"][:count]
            ]
            for side in (0, 1)
        )
        found[name] = vars(paired_ratio(theirs, mine))
    return found


def all_ratios(blocks: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the ratios of each landscape, and of the three levels together, over blocks of rows.

    What not every block has played is left out.
    """
    found = {}
    groups = {kind: (kind,) for kind in KINDS} | {", ".join(LEVELS): LEVELS}
    for group, kinds in groups.items():
        for strategy in OPTIONS:
            keys = [(f"{kind}/default", f"{kind}/{strategy}") for kind in kinds]
            is_played = all(key in rows for rows in blocks for pair in keys for key in pair)
            if strategy != "default" and is_played:
                found[f"{group}/{strategy}"] = compare(
                    [(rows[mine], rows[theirs]) for rows in blocks for mine, theirs in keys]
                )
    return found


def figure(landscape: str, rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the mean true score against calls, one line a strategy, with its quartiles."""
    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = drawn.subplots()
    for name, row in rows.items():
        curve = row["curve"]
        (line,) = axes.plot(curve["calls"], curve["mean"], label=name)
        axes.fill_between(
            curve["calls"], curve["low"], curve["high"], alpha=0.15, color=line.get_color(), lw=0
        )
    axes.axhline(SHARE, color="0.6", lw=0.8, ls="--")
    axes.set(
        xscale="log", xlabel="paid calls", ylabel="true score / best attainable", title=landscape
    )
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right")
    return drawn


def count_look(strategies: Sequence[str], landscapes: Sequence[str], first: int) -> None:
    """Write down that the report seeds are looked at, before they are."""
    path = RESULTS / f"{LOOKS}.json"
    looks = json.loads(path.read_text())["looks"] if path.exists() else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    look = {"at": now, "commit": commit(), "first": first}
    look |= {"strategies": strategies, "landscapes": landscapes}
    record(LOOKS, {"looks": [*looks, look]})


def show(rows: Mapping[str, Mapping[str, Any]], ratios: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table a person reads."""
    table = Table(title="calls until 95 % of the best, and true score / best")
    for heading in ("landscape", "strategy", "sustained", "stay", "first hit", "default is"):
        table.add_column(heading)
    for calls in CHECKPOINTS:
        table.add_column(f"@{calls}", justify="right")
    for key, row in rows.items():
        landscape, strategy = key.split("/")
        ratio = ratios.get(key, {}).get("sustained")
        table.add_row(
            landscape,
            strategy,
            _calls(row["sustained_median"]),
            f"{row['sustained_share']:.0%}",
            _calls(row["first_hit_median"]),
            f"{ratio['mean']:.1f}x [{ratio['low']:.1f}, {ratio['high']:.1f}]" if ratio else "",
            *(f"{row['score_at'][str(calls)]:.3f}" for calls in CHECKPOINTS),
        )
    return table


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parser().parse_args(None if arguments is None else list(arguments))
    if options.smoke:
        options.seeds, options.calls, options.landscapes = 2, 200, ["easy"]
    kind = options.report or "development"
    seeds = {"kind": kind, "first": FIRST_SEED[kind]}
    if options.report and not options.smoke:
        count_look(options.strategies, options.landscapes, seeds["first"])
    limits = {name: options.calls for name in options.strategies}
    limits["instructzero"] = options.baseline_calls or options.calls
    cells = [
        Cell(landscape, strategy, seeds["first"] + seed, limits[strategy])
        for landscape in options.landscapes
        for strategy in options.strategies
        for seed in range(options.seeds)
    ]
    played = run_all(cells, options.workers)
    name = f"{NAME}_{seeds['kind']}"
    rows = {} if options.smoke else earlier_rows(name, seeds)
    for landscape in options.landscapes:
        for strategy in options.strategies:
            runs = [run for cell, run in played.items() if cell[:2] == (landscape, strategy)]
            rows[f"{landscape}/{strategy}"] = {"limit": limits[strategy], **summarise(runs)}
    rows = {key: rows[key] for key in sorted(rows, key=_place)}
    ratios = all_ratios([rows])
    Console(width=150).print(show(rows, ratios))
    if options.smoke:
        return
    content = {"seeds": seeds, "share_of_best": SHARE, "options": OPTIONS}
    content |= {"rows": rows, "ratios": ratios}
    if kind == "report":
        earlier = json.loads((RESULTS / f"{NAME}_{EARLIER_REPORT}.json").read_text())["rows"]
        content["ratios_with_earlier_report"] = all_ratios([rows, earlier])
    path = record(name, content)
    for landscape in options.landscapes:
        here = {
            key.split("/")[1]: row for key, row in rows.items() if key.split("/")[0] == landscape
        }
        figure(landscape, here).savefig(RESULTS / f"{name}_{landscape}.png", dpi=100)
    Console().print(f"written: benchmarks/results/{path.name}")


def earlier_rows(name: str, seeds: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows that an earlier run wrote, from the same first seed on."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    return dict(earlier["rows"]) if earlier["seeds"]["first"] == seeds["first"] else {}


def _place(key: str) -> tuple[int, int]:
    landscape, strategy = key.split("/")
    return KINDS.index(landscape), list(OPTIONS).index(strategy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="tiny, writes nothing")
    parser.add_argument(
        "--report",
        nargs="?",
        const="report",
        choices=["report", EARLIER_REPORT],
        help="use the report seeds, or the block of them before",
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--baseline-calls", type=int, help="how far instructzero may run")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--landscapes", nargs="+", default=list(SPECS), choices=KINDS)
    parser.add_argument("--strategies", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    return parser


def _or_none(value: float) -> float | None:
    return None if value == inf else value


def _calls(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f}"


if __name__ == "__main__":
    main()
