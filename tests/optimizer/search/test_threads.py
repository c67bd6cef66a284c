"""A search takes the same decisions whatever number of threads linear algebra may use."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys

threads = sys.argv[2]
os.environ.update(OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads)
import hashlib

from benchmarks.landscapes import SPECS, Landscape, generate, score
from services.optimizer.search import make_strategy
from services.optimizer.search.strategy import Problem, Room

name, calls = sys.argv[1], 240
landscape = Landscape(SPECS["medium"], 3)
strategy = make_strategy(name, Problem(10, 100, 3, calls=calls), {})
digest, arms, texts, points, spent = hashlib.sha256(), {}, [], 0, 0
while (decision := strategy.propose(Room(calls=calls - spent))) is not None:
    strategy.decided(decision)
    digest.update(repr(decision).encode())
    written = generate(landscape, decision.points, points, arms, texts)
    points += len(decision.points)
    spent += len(decision.evaluations)
    strategy.observe(
        written, [score(landscape, texts[pair.arm], pair) for pair in decision.evaluations]
    )
print(spent, strategy.recommend(), digest.hexdigest())
"""


@pytest.mark.parametrize("name", ["default", "instructzero"])
def test_one_thread_and_four_give_the_same_search(name: str) -> None:
    found = set()
    for threads in ("1", "4"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name, threads],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found.add(done.stdout)
    assert len(found) == 1
