"""What each ingredient of the default search is worth: taken out, and the same jobs run again.

    python -m benchmarks.ablation --smoke     # two seeds, writes nothing
    python -m benchmarks.ablation

Every row changes one thing (an option, or a constant or function of the search) and plays the same
landscapes and development seeds. The differences of the true score over the best attainable are
paired, with 95 % bootstrap intervals over the seeds; ratios are of calls until 95 % of the best and
staying there, above 1 where the change costs calls.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.calls_to_target import FIRST_SEED, SHARE, censored, paired_ratio
from benchmarks.landscapes import SPECS, Landscape, Run, play
from benchmarks.record import record
from services.optimizer.search import racing
from services.optimizer.search.strategy import FloatArray, Problem

CHECKPOINTS = (150, 250, 350, 500)
CALLS = 600
KINDS = ("easy", "medium", "hard")
SEARCH = "services.optimizer.search."


@dataclass(frozen=True)
class Variant:
    """One change to the default search.

    Attributes:
        why: what the row is about.
        options: options of the strategy.
        constants: values of constants in the search's modules, by "module.NAME".
        calls_per_round: calls that are decided on at once.
    """

    why: str
    options: Mapping[str, object] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    calls_per_round: int = Problem.calls_per_round


def gain_on_the_difference(
    mean: FloatArray,
    covariance: FloatArray,
    noise: FloatArray,
    is_tried: NDArray[np.bool_],
    n_examples: NDArray[np.intp],
) -> FloatArray:
    """Knowledge gradient that knows what arms have in common; as `racing.knowledge_gradient`.

    Examples of an arm move the difference between the leader and another arm by what they say of
    one and not of the other. Their worth is that for the arm itself or, if more, for one of the
    twenty next best.
    """
    tried = np.where(is_tried, mean, -np.inf)
    leader = int(np.argmax(tried))
    ranked = np.argsort(-tried, kind="stable")[:21]
    rivals = ranked[(ranked != leader) & np.isfinite(tried[ranked])]
    variance = np.maximum(np.diag(covariance), 1e-12)
    freedom = np.asarray(racing.TAIL + n_examples, dtype=np.float64)
    own = np.abs(variance - covariance[:, leader])[:, None]
    moves = np.abs(covariance[:, rivals] - covariance[:, [leader]])
    moves = np.hstack([own, moves])
    behind = np.abs(mean[:, None] - mean[leader])
    behind = np.hstack([behind, np.tile(mean[leader] - mean[rivals], (len(mean), 1))])
    best = np.zeros(len(mean))
    for r in racing.LOOK_AHEAD:
        moved = np.maximum(moves / np.sqrt(variance + noise / r)[:, None], 1e-12)
        gain = moved * racing.student_gain(-behind / moved, freedom[:, None])
        best = np.maximum(best, gain.max(axis=1) / r)
    return best


def top_two(
    mean: FloatArray,
    covariance: FloatArray,
    noise: FloatArray,
    is_tried: NDArray[np.bool_],
    n_examples: NDArray[np.intp],
) -> FloatArray:
    """Top-two Thompson sampling (Russo 2020): 1 for the arm it picks, 0 for the others.

    The best arm of one draw from the posterior or, half of the time, of the first draw after it
    that has another best arm.
    """
    rng = np.random.default_rng(int(n_examples.sum()))
    jitter = 1e-9 * np.eye(len(mean))
    drawn = rng.multivariate_normal(mean, covariance + jitter, size=60, method="cholesky")
    best = drawn.argmax(axis=1)
    others = best[best != best[0]]
    value = np.zeros(len(mean))
    value[others[0] if len(others) and rng.uniform() < 0.5 else best[0]] = 1.0
    return value


NO_LATENT = {  # the fit is held at next to nothing
    "surrogate._PRIOR_MEAN": np.log(np.array([1.5, 1e-6, 0.04])),
    "surrogate._PRIOR_SD": np.array([0.5, 1e-3, 1.0]),
}
VARIANTS: Mapping[str, Variant] = {
    "default": Variant("as it is"),
    "pool of 100": Variant("fewer instructions before the race", {"pool": 100}),
    "pool of 200": Variant("fewer instructions before the race", {"pool": 200}),
    "pool of 1,600": Variant("more instructions before the race", {"pool": 1600}),
    "60 arms at first": Variant("twice as many first looks", {"initial_arms": 60}),
    "first look 2": Variant("two examples for a new arm", {"first_examples": 2}),
    "first look 5": Variant("five examples for a new arm", {"first_examples": 5}),
    "no racing": Variant(
        "twenty examples for every arm", {"first_examples": 20, "next_examples": 20}
    ),
    "next look 1": Variant("smaller lots for a known arm", {"next_examples": 1}),
    "next look 5": Variant("larger lots for a known arm", {"next_examples": 5}),
    "next look 10": Variant("larger lots for a known arm", {"next_examples": 10}),
    "no guided points": Variant(
        "no instruction proposed by expected improvement", {"guided_points": 0}
    ),
    "no latent kernel": Variant("arms know nothing of one another", {}, NO_LATENT),
    "first looks alike": Variant(
        "every arm begins with the same example", {}, {"race.FIRST_BLOCK": 1}
    ),
    "one point per arm": Variant(
        "an arm's kernel sees one of its points", {}, {"race.MAX_POINTS_PER_ARM": 1}
    ),
    "eight points per arm": Variant(
        "an arm's kernel sees up to eight of its points", {}, {"race.MAX_POINTS_PER_ARM": 8}
    ),
    "arms more their own": Variant(
        "a wider prior for what the points do not explain",
        {},
        {"surrogate._PRIOR_MEAN": np.log(np.array([1.5, 0.04, 0.02]))},
    ),
    "no example effects": Variant(
        "hard examples are not known as such", {}, {"surrogate.EXAMPLE_VARIANCE": 1e-6}
    ),
    "heavier tails": Variant(
        "a long shot is worth more, as if with three degrees of freedom", {}, {"racing.TAIL": 3.0}
    ),
    "normal tails": Variant(
        "a long shot is worth what a normal belief says", {}, {"racing.TAIL": 1e6}
    ),
    "any better arm": Variant(
        "the best posterior mean is recommended, however small its lead",
        {},
        {"race.BETTER_BY": 0.0},
    ),
    "gain on the difference": Variant(
        "calls are weighed by what they say of two arms' difference",
        {},
        {"race.knowledge_gradient": gain_on_the_difference},
    ),
    "top-two Thompson": Variant(
        "calls go to the best of two draws from the posterior",
        {},
        {"race.knowledge_gradient": top_two},
    ),
    "stay by 3 points": Variant(
        "the leader stays until another is better by three points", {}, {"race.BETTER_BY": 0.03}
    ),
    "first block 24": Variant(
        "arms begin at different ones of 24 examples", {}, {"race.FIRST_BLOCK": 24}
    ),
    "rounds of 8": Variant("more decisions, fewer calls in flight", calls_per_round=8),
    "rounds of 40": Variant("fewer decisions, more calls in flight", calls_per_round=40),
    "look ahead 2": Variant(
        "lots of two are weighed too", {}, {"racing.LOOK_AHEAD": (2, *racing.LOOK_AHEAD)}
    ),
    "look ahead 5": Variant("no larger lots are weighed", {}, {"racing.LOOK_AHEAD": (5,)}),
    "before 0021": Variant(
        "lots of five, rounds of 40, heavier tails, lots of two weighed: all at once",
        {"next_examples": 5},
        {"racing.TAIL": 3.0, "racing.LOOK_AHEAD": (2, *racing.LOOK_AHEAD)},
        calls_per_round=40,
    ),
    "no refit": Variant("hyper-parameters of the prior", {}, {"race.REFIT_GROWTH": 1e9}),
}


@contextmanager
def changed(variant: Variant) -> Iterator[None]:
    """Set a variant's constants, and set them back."""
    places = []
    for name, value in variant.constants.items():
        module_name, constant = name.rsplit(".", 1)
        module = importlib.import_module(SEARCH + module_name)
        places.append((module, constant, getattr(module, constant)))
        setattr(module, constant, value)
    try:
        yield
    finally:
        for module, constant, value in places:
            setattr(module, constant, value)


def run_cell(cell: tuple[str, str, int, int]) -> Run:
    """Play one job of one variant."""
    name, kind, seed, calls = cell
    variant, landscape = VARIANTS[name], Landscape(SPECS[kind], seed)
    problem = Problem(
        landscape.dim,
        landscape.spec.n_validation,
        seed,
        calls=calls,
        calls_per_round=variant.calls_per_round,
    )
    with changed(variant):
        return play("default", landscape, calls, seed, variant.options, problem)


def difference(mine: Sequence[float], full: Sequence[float]) -> dict[str, float]:
    """Return the mean paired difference with a 95 % bootstrap interval over the seeds."""
    apart = np.array(mine) - np.array(full)
    picks = np.random.default_rng(0).integers(len(apart), size=(4000, len(apart)))
    low, high = np.quantile(apart[picks].mean(axis=1), [0.025, 0.975])
    return {"mean": float(apart.mean()), "low": float(low), "high": float(high)}


def summarise(runs: Sequence[Run], full: Sequence[Run]) -> dict[str, Any]:
    """Return one row of the table."""
    row: dict[str, Any] = {"score_at": {}, "difference_at": {}}
    for calls in CHECKPOINTS:
        mine = [run.at(calls) / run.best for run in runs]
        row["score_at"][str(calls)] = float(np.mean(mine))
        row["difference_at"][str(calls)] = difference(
            mine, [run.at(calls) / run.best for run in full]
        )
    ratio = paired_ratio(
        [censored(run.sustained(SHARE), run) for run in runs],
        [censored(run.sustained(SHARE), run) for run in full],
    )
    row["calls_ratio"] = vars(ratio)
    row["points"] = float(np.mean([run.n_points for run in runs]))
    row["seconds"] = float(np.mean([run.seconds for run in runs]))
    return row


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="tiny, writes nothing")
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(SPECS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args(None if arguments is None else list(arguments))
    calls = CALLS
    if options.smoke:
        options.seeds, options.kinds, calls = 2, ["easy"], 150
    names = ["default", *(name for name in options.variants if name != "default")]
    first = FIRST_SEED["development"]
    cells = [
        (name, kind, first + seed, calls)
        for name in names
        for kind in options.kinds
        for seed in range(options.seeds)
    ]
    console = Console(width=150)
    with ProcessPoolExecutor(options.workers) as pool:
        found = track(pool.map(run_cell, cells), "runs", total=len(cells), console=console)
        runs = dict(zip(cells, found, strict=True))
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    for kind in [*options.kinds, "all"]:
        kinds = options.kinds if kind == "all" else [kind]
        groups = {
            name: [run for cell, run in runs.items() if cell[0] == name and cell[1] in kinds]
            for name in names
        }
        for name in names:
            rows[name][kind] = summarise(groups[name], groups["default"])
    console.print(show(rows))
    if options.smoke:
        return
    content = {
        "seeds": {"kind": "development", "first": first, "count": options.seeds},
        "calls": calls,
        "why": {name: VARIANTS[name].why for name in names},
        "rows": rows,
    }
    console.print(f"written: benchmarks/results/{record('ablation', content).name}")


def show(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table a person reads, over all kinds."""
    table = Table(title="one ingredient changed at a time; difference to the default, all kinds")
    table.add_column("variant")
    for calls in CHECKPOINTS:
        table.add_column(f"@{calls}", justify="right")
    table.add_column("calls until 95 %", justify="right")
    for name, kinds in rows.items():
        row = kinds["all"]
        cells = []
        for calls in CHECKPOINTS:
            apart = row["difference_at"][str(calls)]
            cells.append(
                f"{row['score_at'][str(calls)]:.3f}"
                if name == "default"
                else f"{apart['mean']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]"
            )
        ratio = row["calls_ratio"]
        table.add_row(
            name, *cells, f"{ratio['mean']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        )
    return table


if __name__ == "__main__":
    main()
