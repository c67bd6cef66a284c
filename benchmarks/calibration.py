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
from dataclasses import asdict, dataclass, replace

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.landscapes import SPECS, Landscape, Run, play
from benchmarks.record import record
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
    difference = paired_difference(*scores)
    true_difference = float(landscape.truth[winner] - landscape.truth[baseline])
    return Outcome(
        kind=kind,
        budget=budget,
        n=plan.n_examples,
        truth=float(landscape.truth[winner]),
        score=found.mean,
        is_covered=bool(found.low <= landscape.truth[winner] <= found.high),
        true_difference=true_difference,
        is_difference_covered=bool(difference.low <= true_difference <= difference.high),
        verdict=verdict(difference, plan.n_examples, winner == baseline),
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
    by_kind = {kind: summarise([o for o in outcomes if o.kind == kind]) for kind in KINDS}
    content = {"summary": summary, "by_kind": by_kind, "jobs": [asdict(o) for o in outcomes]}
    path = record("calibration", content)
    console.print(f"written: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
