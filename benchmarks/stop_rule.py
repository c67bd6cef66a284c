"""May the search stop by itself? When the model's chance of a better instruction gets small.

    python -m benchmarks.stop_rule --smoke     # writes nothing
    python -m benchmarks.stop_rule

Each run goes to the end of its calls and notes, after every decision, the chance that
`chance_of_better` gives and the true regret of the recommendation: the best score attainable less
its own. Afterwards each threshold is asked where it would have stopped. A stop is wrong when the
regret is above two points. Beside it: how often the regret is above two points however long the
search goes on, which no rule can mend.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.calls_to_target import FIRST_SEED
from benchmarks.landscapes import SPECS, Landscape, play
from benchmarks.record import record

CALLS = 1500
KINDS = ("easy", "medium", "hard", "flat")
THRESHOLDS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
WRONG = 0.02
"""A regret above this makes a stop wrong."""


class Trace(NamedTuple):
    """One run: calls, chance of a better instruction and true regret after every decision."""

    kind: str
    calls: Sequence[int]
    chance: Sequence[float]
    regret: Sequence[float]


def trace(cell: tuple[str, int, int]) -> Trace:
    """Play one run to its end."""
    kind, seed, calls = cell
    landscape = Landscape(SPECS[kind], seed)
    run = play("default", landscape, calls, seed, watch="chance_of_better")
    return Trace(kind, run.calls, run.watched, [run.best - truth for truth in run.truth])


def stopped(traces: Sequence[Trace], threshold: float) -> dict[str, float]:
    """Return what stopping at this threshold would have done."""
    wrong, saved, fired = [], [], []
    for run in traces:
        below = np.flatnonzero(np.array(run.chance) < threshold)
        end = int(below[0]) if len(below) else len(run.calls) - 1
        fired.append(bool(len(below)))
        wrong.append(run.regret[end] > WRONG)
        saved.append(1.0 - run.calls[end] / run.calls[-1])
    is_fired = np.array(fired)
    return {
        "stops": float(is_fired.mean()),
        "wrong_of_stops": float(np.array(wrong)[is_fired].mean()) if is_fired.any() else 0.0,
        "calls_saved": float(np.mean(saved)),
    }


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="tiny, writes nothing")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(None if arguments is None else list(arguments))
    kinds: tuple[str, ...] = KINDS
    calls, first = CALLS, FIRST_SEED["development"]
    if options.smoke:
        kinds, options.seeds, calls = KINDS[:1], 2, 200
    cells = [(kind, first + seed, calls) for kind in kinds for seed in range(options.seeds)]
    console = Console(width=120)
    with ProcessPoolExecutor(options.workers) as pool:
        traces = list(track(pool.map(trace, cells), "runs", total=len(cells), console=console))
    table = Table(title=f"regret above {WRONG} when stopped, calls saved of {calls}")
    table.add_column("landscape")
    table.add_column("never", justify="right")
    for threshold in THRESHOLDS:
        table.add_column(f"below {threshold}", justify="right")
    rows: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        here = [run for run in traces if run.kind == kind]
        at_end = float(np.mean([run.regret[-1] > WRONG for run in here]))
        rows[kind] = {
            "wrong_at_the_end": at_end,
            "thresholds": {str(t): stopped(here, t) for t in THRESHOLDS},
        }
        cells_of_row = [
            f"{row['wrong_of_stops']:.0%} of {row['stops']:.0%}, saves {row['calls_saved']:.0%}"
            for row in rows[kind]["thresholds"].values()
        ]
        table.add_row(kind, f"{at_end:.0%}", *cells_of_row)
    console.print(table)
    if options.smoke:
        return
    content = {"calls": calls, "seeds": options.seeds, "wrong_regret": WRONG, "rows": rows}
    console.print(f"written: benchmarks/results/{record('stop_rule', content).name}")


if __name__ == "__main__":
    main()
