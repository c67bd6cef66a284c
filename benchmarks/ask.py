"""What one step of the search costs, against the number of arms and against a plain implementation.

    python -m benchmarks.ask --smoke     # small sizes, writes nothing
    python -m benchmarks.ask

A step decides what to generate and what to buy next, hyper-parameters fitted anew. The plain
implementation is the paper's step as one writes it in an afternoon (`plain_step.py`). One thread
each. Nothing here imports BoTorch until it is compared with, so that memory is that of a search.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.landscapes import SPECS, Landscape, generate, score
from benchmarks.record import record
from services.optimizer.search import make_strategy
from services.optimizer.search.default import DefaultOptions, DefaultStrategy
from services.optimizer.search.strategy import (
    Decision,
    Evaluation,
    GeneratedText,
    Problem,
    Room,
    Scored,
)
from services.optimizer.steps import decision_from_json, decision_to_json

DIM, EXAMPLES = 10, 20
SIZES = (25, 75, 150, 300, 600, 1000)
PLAIN_UP_TO = 300
LARGEST = (1000, 2000)
"""Arms and validation examples at which memory is measured."""


def strategy_with(n_arms: int, n_examples: int, n_validation: int, seed: int) -> DefaultStrategy:
    """Return the default strategy after n arms were each tried on some examples."""
    rng = np.random.default_rng(seed)
    problem = Problem(DIM, n_validation, seed, calls=10**9)
    strategy = DefaultStrategy(problem, DefaultOptions(pool=n_arms))
    points = rng.uniform(-1.0, 1.0, (n_arms, DIM))
    chance = 1.0 / (1.0 + np.exp(-2.0 * points[:, 0] - points[:, 1]))
    order = strategy._seen.order[:n_examples]
    pairs = tuple(Evaluation(arm, int(j)) for arm in range(n_arms) for j in order)
    strategy.decided(Decision(points=tuple(map(tuple, points.tolist()))))
    strategy.observe([GeneratedText(arm, arm, f"text {arm}") for arm in range(n_arms)], ())
    strategy.decided(Decision(evaluations=pairs))
    drawn = rng.uniform(size=len(pairs))
    scores = [
        Scored(pair.arm, pair.example, float(u < chance[pair.arm]), "")
        for pair, u in zip(pairs, drawn, strict=True)
    ]
    strategy.observe((), scores)
    return strategy


def seconds_of(make: Callable[[], Callable[[], object]], repeats: int) -> list[float]:
    """Time a step `repeats` times, each on a new copy of what it works on."""
    taken = []
    for _ in range(repeats):
        step = make()
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return taken


def measure(n: int, repeats: int, *, with_plain: bool) -> dict[str, Any]:
    """Return one row: seconds of our step with a refit and without, and of the plain one."""
    room = Room(calls=10**6)

    def refitting() -> Callable[[], object]:
        strategy = strategy_with(n, EXAMPLES, 100, seed=n)
        return lambda: strategy.propose(room)

    def standing() -> Callable[[], object]:
        strategy = strategy_with(n, EXAMPLES, 100, seed=n)
        decision = strategy.propose(room)
        assert decision is not None  # noqa: S101 - there is room
        strategy._seen.memo = dict(decision.memo)
        return lambda: strategy.propose(room)

    refitting()()  # caches of the libraries
    row: dict[str, Any] = {
        "arms": n,
        "refit_seconds": seconds_of(refitting, repeats),
        "no_refit_seconds": seconds_of(standing, repeats),
    }
    if with_plain:
        import torch
        from botorch.utils.sampling import manual_seed

        from benchmarks.plain_step import plain_step

        torch.set_num_threads(1)
        with warnings.catch_warnings(), manual_seed(0):
            warnings.simplefilter("ignore")
            row["plain_seconds"] = seconds_of(lambda: plain_step(n, seed=n), max(1, repeats // 5))
    return row


def growth(rows: list[dict[str, Any]]) -> float:
    """Return the exponent of the step's cost in the number of arms, from 150 arms on."""
    large = [row for row in rows if row["arms"] >= 150]
    if len(large) < 2:
        return float("nan")
    sizes = np.log([row["arms"] for row in large])
    times = np.log([np.median(row["refit_seconds"]) for row in large])
    return float(np.polyfit(sizes, times, 1)[0])


def peak_kb() -> int:
    """Return the most memory that this program has used (`getrusage` counts its parent's, too)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory() -> dict[str, float]:
    """Return what a process that takes a step at the largest size uses in memory, in MB."""
    program = (
        "import json; from benchmarks.ask import *; base = peak_kb(); "
        f"s = strategy_with({LARGEST[0]}, {EXAMPLES}, {LARGEST[1]}, 0); "
        "s.propose(Room(calls=10**6)); "
        "print(json.dumps([base, peak_kb()]))"
    )
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    base, peak = json.loads(done.stdout)
    return {"before_mb": base / 1024, "peak_mb": peak / 1024, "added_mb": (peak - base) / 1024}


def replay(n_calls: int) -> dict[str, Any]:
    """Time how long a search takes to take in its journal again, and see that it goes on alike."""
    landscape = Landscape(SPECS["medium"], 0)
    problem = Problem(DIM, landscape.spec.n_validation, seed=0, calls=2 * n_calls)
    whole = make_strategy("default", problem)
    journal: list[tuple[str, list[GeneratedText], list[Scored]]] = []
    arms: dict[int, int] = {}
    texts: list[int] = []
    points = calls = 0
    while calls < n_calls:
        decision = whole.propose(Room(calls=problem.calls))
        if decision is None:
            raise RuntimeError("the search ended before the journal was long enough")
        whole.decided(decision)
        written = generate(landscape, decision.points, points, arms, texts)
        scored = [score(landscape, texts[pair.arm], pair) for pair in decision.evaluations]
        whole.observe(written, scored)
        content = json.dumps(decision_to_json(decision, n_told=len(journal)))
        journal.append((content, written, scored))
        points, calls = points + len(decision.points), calls + len(scored)
    begun = time.perf_counter()
    again = make_strategy("default", problem)
    for content, written, scored in journal:
        again.decided(decision_from_json(json.loads(content)))
        again.observe(written, scored)
    seconds = time.perf_counter() - begun
    room = Room(calls=n_calls)
    return {
        "evaluations": calls,
        "decisions": len(journal),
        "seconds": seconds,
        "continues_alike": again.propose(room) == whole.propose(room),
    }


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="small sizes, writes nothing")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(None if arguments is None else list(arguments))
    sizes = SIZES[:2] if options.smoke else SIZES
    repeats = 2 if options.smoke else options.repeats
    rows = [
        measure(n, repeats, with_plain=n <= (25 if options.smoke else PLAIN_UP_TO)) for n in sizes
    ]
    table = Table(title="seconds of one step, median")
    for heading in ("arms", "with refit", "without", "plain", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        refit = float(np.median(row["refit_seconds"]))
        plain = float(np.median(row["plain_seconds"])) if "plain_seconds" in row else None
        row["ratio"] = None if plain is None else plain / refit
        table.add_row(
            str(row["arms"]),
            f"{refit:.4f}",
            f"{np.median(row['no_refit_seconds']):.4f}",
            "" if plain is None else f"{plain:.2f}",
            "" if plain is None else f"{plain / refit:.0f}",
        )
    console = Console()
    console.print(table)
    content = {
        "rows": rows,
        "growth_exponent": growth(rows),
        "memory": memory(),
        "replay": replay(300 if options.smoke else 3000),
        "threads": 1,
    }
    console.print(f"growth: n^{content['growth_exponent']:.2f}; memory: {content['memory']}")
    console.print(f"replay: {content['replay']}")
    if options.smoke:
        return
    path = record("ask", content)
    console.print(f"written: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
