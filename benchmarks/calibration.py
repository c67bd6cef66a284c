"""Are the intervals and verdicts of the final report right? Simulated jobs, whose truth is known.

    python -m benchmarks.calibration --smoke     # a few jobs, writes nothing
    python -m benchmarks.calibration             # 500 jobs

Each job searches a landscape of its own, then measures the winner and a baseline on examples that
the search has not seen. The baseline is drawn from all texts of the landscape, so that it is better
than the winner at times, and the winner's own text at times a part of the same family.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from benchmarks.landscapes import SPECS, Landscape, Run, play
from benchmarks.record import RESULTS, record
from services.optimizer.search.report import (
    paired_difference,
    plan_final_check,
    score_interval,
    verdict,
)
from services.optimizer.search.strategy import Problem

KINDS = ("easy", "medium", "hard", "flipped", "flat")
N_VALIDATION, N_TEST = 100, 100
BUDGETS = (150, 300, 600)
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Levels at which the picture compares what intervals say with what they hold."""
GOOD_SHARE_OF_BASELINES = 0.3
"""Share of the jobs whose baseline is among the best twentieth of all texts: hard to beat."""


@dataclass(frozen=True)
class Outcome:
    """What one job reported, and the truth."""

    kind: str
    budget: int
    n: int
    truth: float
    score: float
    is_covered: bool
    true_difference: float
    is_difference_covered: bool
    verdict: str
    covered_at: tuple[bool, ...]
    difference_covered_at: tuple[bool, ...]


def run_job(seed: int) -> Outcome:
    """Run one simulated job; everything follows from its seed."""
    rng = np.random.default_rng([seed, 77])
    kind, budget = KINDS[seed % len(KINDS)], BUDGETS[seed // len(KINDS) % len(BUDGETS)]
    spec = replace(SPECS[kind], n_validation=N_VALIDATION + N_TEST)
    landscape = Landscape(spec, 200_000 + seed)
    plan = plan_final_check(budget, N_TEST, has_baseline=True)
    problem = Problem(landscape.dim, N_VALIDATION, seed, calls=budget - plan.reserved_calls)
    played: Run = play("default", landscape, budget - plan.reserved_calls, seed, problem=problem)
    winner, baseline = played.recommended, _baseline(landscape, rng)
    fresh = N_VALIDATION + rng.permutation(N_TEST)[: plan.n_examples]
    scores = [landscape.scores[text, fresh].tolist() for text in (winner, baseline)]
    found = score_interval(scores[0])
    difference = paired_difference(scores[0], scores[1])
    truth = float(landscape.truth[winner])
    true_difference = truth - float(landscape.truth[baseline])
    at = [score_interval(scores[0], level) for level in LEVELS]
    difference_at = [paired_difference(scores[0], scores[1], level) for level in LEVELS]
    return Outcome(
        kind=kind,
        budget=budget,
        n=plan.n_examples,
        truth=truth,
        score=found.mean,
        is_covered=bool(found.low <= truth <= found.high),
        true_difference=true_difference,
        is_difference_covered=bool(difference.low <= true_difference <= difference.high),
        verdict=verdict(difference, plan.n_examples, winner == baseline),
        covered_at=tuple(bool(i.low <= truth <= i.high) for i in at),
        difference_covered_at=tuple(
            bool(i.low <= true_difference <= i.high) for i in difference_at
        ),
    )


def _baseline(landscape: Landscape, rng: np.random.Generator) -> int:
    order = np.argsort(landscape.truth)
    if rng.uniform() < GOOD_SHARE_OF_BASELINES:
        order = order[-max(2, len(order) // 20) :]
    return int(rng.choice(order))


def summarise(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the rates that the report promises."""
    better = [o for o in outcomes if o.verdict == "better"]
    worse = [o for o in outcomes if o.true_difference <= 0]
    return {
        "jobs": len(outcomes),
        "coverage": float(np.mean([o.is_covered for o in outcomes])),
        "difference_coverage": float(np.mean([o.is_difference_covered for o in outcomes])),
        "bias": float(np.mean([o.score - o.truth for o in outcomes])),
        "better": len(better) / len(outcomes),
        "better_and_wrong": float(np.mean([o.true_difference <= 0 for o in better])),
        "not_better": float(np.mean([o.verdict == "not_better" for o in outcomes])),
        "called_better_when_not": float(np.mean([o.verdict == "better" for o in worse])),
        "jobs_without_gain": len(worse),
    }


def figure(outcomes: Sequence[Outcome]) -> Figure:
    """Draw how often intervals of each level hold the truth, with twice the standard error."""
    drawn = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = drawn.subplots()
    axes.plot([0.4, 1.0], [0.4, 1.0], color="0.6", lw=0.8, ls="--")
    for name, label in (("covered_at", "score"), ("difference_covered_at", "difference")):
        rates = np.array([getattr(outcome, name) for outcome in outcomes]).mean(axis=0)
        error = 2.0 * np.sqrt(rates * (1.0 - rates) / len(outcomes))
        axes.errorbar(LEVELS, rates, yerr=error, marker="o", ms=4, capsize=2, label=label)
    axes.set(xlabel="level of the interval", ylabel="share that holds the truth")
    axes.set_title(f"final report, {len(outcomes)} simulated jobs")
    axes.legend(loc="upper left")
    return drawn


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="a few jobs, writes nothing")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(None if arguments is None else list(arguments))
    jobs = 6 if options.smoke else options.jobs
    console = Console()
    with ProcessPoolExecutor(options.workers) as pool:
        found = pool.map(run_job, range(jobs), chunksize=2)
        outcomes = list(track(found, total=jobs, description="jobs", console=console))
    summary = summarise(outcomes)
    console.print(summary)
    if options.smoke:
        return
    figure(outcomes).savefig(RESULTS / "calibration.png", dpi=100)
    by_kind = {kind: summarise([o for o in outcomes if o.kind == kind]) for kind in KINDS}
    content: dict[str, Any] = {"summary": summary, "by_kind": by_kind, "levels": LEVELS}
    content["coverage_at"] = np.mean([o.covered_at for o in outcomes], axis=0).tolist()
    content["difference_coverage_at"] = np.mean(
        [o.difference_covered_at for o in outcomes], axis=0
    ).tolist()
    path = record("calibration", content)
    console.print(f"written: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
