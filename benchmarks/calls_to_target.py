"""How many paid calls each strategy needs, side by side on the same landscapes and seeds.

    python -m benchmarks.calls_to_target --smoke          # a minute, for correctness only
    python -m benchmarks.calls_to_target                  # development seeds
    python -m benchmarks.calls_to_target --report         # report seeds; each look is counted

Read off after every decision: the true score of the instruction that the strategy would recommend
then. *Sustained* is the number of calls from which on it always has 95 % of the best attainable;
*first hit* is where it first has. A run that never gets there counts with its last call, so that
ratios against it are lower bounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.landscapes import SPECS, Landscape, Run, play
from benchmarks.record import RESULTS, record

CHECKPOINTS = (150, 250, 500, 1000, 3000)
FIRST_SEED = {"development": 0, "report": 100_000}
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "instructzero": {"examples": 20},
    "random": {"examples": 20},
    "ape": {},
}
LOOKS = "calls_to_target_looks"
SHARE = 0.95


@dataclass(frozen=True)
class Cell:
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


def run_cell(cell: Cell) -> Run:
    """Play one run; everything in it follows from the cell."""
    landscape = Landscape(SPECS[cell.landscape], cell.seed)
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
    """Return one row of the table."""
    sustained = [run.sustained(SHARE) for run in runs]
    hits = [run.first_hit(SHARE) for run in runs]
    return {
        "runs": len(runs),
        "sustained_median": _or_none(float(np.median(sustained))),
        "sustained_share": float(np.mean(np.isfinite(sustained))),
        "first_hit_median": _or_none(float(np.median(hits))),
        "score_at": {
            str(calls): float(np.mean([run.at(calls) / run.best for run in runs]))
            for calls in CHECKPOINTS
        },
        "points": float(np.mean([run.n_points for run in runs])),
        "seconds": float(np.mean([run.seconds for run in runs])),
        "sustained": [_or_none(calls) for calls in sustained],
        "first_hit": [_or_none(calls) for calls in hits],
    }


def compare(mine: Sequence[Run], theirs: Sequence[Run]) -> dict[str, Any]:
    """Return the ratios of another strategy to `default`, run by run on the same landscapes."""
    found = {}
    for name in ("sustained", "first_hit"):
        ratio = paired_ratio(
            [censored(getattr(run, name)(SHARE), run) for run in theirs],
            [censored(getattr(run, name)(SHARE), run) for run in mine],
        )
        found[name] = vars(ratio)
    return found


def figure(landscape: str, rows: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw the mean true score against calls, one line a strategy."""
    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = drawn.subplots()
    for name, runs in rows.items():
        last = min(run.calls[-1] for run in runs)
        calls = np.unique(np.geomspace(10, last, 120).astype(int))
        scores = np.array([[run.at(int(c)) / run.best for c in calls] for run in runs])
        (line,) = axes.plot(calls, scores.mean(axis=0), label=name)
        low, high = np.quantile(scores, [0.25, 0.75], axis=0)
        axes.fill_between(calls, low, high, alpha=0.15, color=line.get_color(), lw=0)
    axes.axhline(SHARE, color="0.6", lw=0.8, ls="--")
    axes.set(
        xscale="log", xlabel="paid calls", ylabel="true score / best attainable", title=landscape
    )
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right")
    return drawn


def count_look() -> int:
    """Count a look at the report seeds; return how many there were."""
    path = RESULTS / f"{LOOKS}.json"
    looks = json.loads(path.read_text())["looks"] + 1 if path.exists() else 1
    record(LOOKS, {"looks": looks})
    return int(looks)


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
    seeds = "report" if options.report else "development"
    first = FIRST_SEED[seeds]
    limits = {name: options.calls for name in options.strategies}
    limits["instructzero"] = options.baseline_calls or options.calls
    cells = [
        Cell(landscape, strategy, first + seed, limits[strategy])
        for landscape in options.landscapes
        for strategy in options.strategies
        for seed in range(options.seeds)
    ]
    played = run_all(cells, options.workers)
    rows, ratios = {}, {}
    for landscape in options.landscapes:
        groups = {
            name: [
                run
                for cell, run in played.items()
                if cell.landscape == landscape and cell.strategy == name
            ]
            for name in options.strategies
        }
        for name, runs in groups.items():
            rows[f"{landscape}/{name}"] = summarise(runs)
            if name != "default" and "default" in groups:
                ratios[f"{landscape}/{name}"] = compare(groups["default"], runs)
        if not options.smoke:
            RESULTS.mkdir(exist_ok=True)
            figure(landscape, groups).savefig(
                RESULTS / f"calls_to_target_{seeds}_{landscape}.png", dpi=130
            )
    Console(width=150).print(show(rows, ratios))
    if options.smoke:
        return
    content = {
        "seeds": {"kind": seeds, "first": first, "count": options.seeds},
        "looks_at_report_seeds": count_look() if options.report else None,
        "calls": limits,
        "share_of_best": SHARE,
        "options": OPTIONS,
        "rows": rows,
        "ratios": ratios,
    }
    path = record(f"calls_to_target_{seeds}", content)
    Console().print(f"written: benchmarks/results/{path.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="tiny, writes nothing")
    parser.add_argument("--report", action="store_true", help="use the report seeds")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--baseline-calls", type=int, help="how far instructzero may run")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--landscapes", nargs="+", default=list(SPECS), choices=list(SPECS))
    parser.add_argument("--strategies", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    return parser


def _or_none(value: float) -> float | None:
    return None if value == inf else value


def _calls(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f}"


if __name__ == "__main__":
    main()
