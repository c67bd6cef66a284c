"""Measure the demo model: `python -m services.demo.evaluate`.

Writes `evaluation.json` next to the code and the tables of `docs/demo-model.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import qmc

from instructzero.errors import InstructZeroError
from services.demo import MODEL_PATH
from services.demo.corpus import (
    INPUTS,
    INSTRUCTIONS,
    PHRASES,
    RELATED,
    TASKS,
    VERBS,
    Pair,
    demo_task,
    executed,
    expected,
    is_held_out,
)
from services.demo.executor import Executor, one_thread_pool
from services.demo.lessons import DEFAULT
from services.demo.network import load_network
from services.demo.tables import write_tables
from services.demo.wording import ASKED, is_held_out_wording, reworded
from services.demo.writer import Writer

EVALUATION = Path(__file__).parent / "evaluation.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "demo-model.md"
N_POINTS = 200
BEST_OF = (1, 5, 10, 25, 50, 100)
GOOD = 0.95
_N_DRAWS = 300
_SEED = 0
Row = dict[str, Any]


class Examiner:
    """Asks the executor and remembers what each instruction scored."""

    def __init__(self, folder: Path) -> None:
        """Load the model."""
        self._executor = Executor(folder)
        self._pool = one_thread_pool(2)

    def answers(self, instruction: str, inputs: Iterable[str]) -> list[str]:
        """Return the answers to some inputs, in the product's default template."""
        return list(self._pool.map(lambda given: self._answer(instruction, given), inputs))

    def accuracy(self, instruction: str, pairs: Sequence[Pair]) -> float:
        """Return the share of the pairs that are answered as they should be."""
        answers = self.answers(instruction, [given for given, _ in pairs])
        return fmean(answer == right for answer, (_, right) in zip(answers, pairs, strict=True))

    def _answer(self, instruction: str, given: str) -> str:
        content = DEFAULT.format(instruction=instruction, input=given)
        prompt = self._executor.prompt([{"role": "user", "content": content}], 16)
        return self._executor.answer(prompt, 16).text


def executor_row(examiner: Examiner, task: str) -> Row:
    """Measure how the executor obeys, for one task."""
    pairs = demo_task(task)[1]
    draw = random.Random(f"evaluate/{task}")  # noqa: S311 - a fixed sample
    texts = [[f"{draw.choice(VERBS)} {p}." for p in phrases] for phrases in PHRASES[task]]
    plain = {other: f"{VERBS[0]} {PHRASES[other][0][0]}." for other in TASKS}
    strangers = [other for other in TASKS if other != task and other not in RELATED[task]]
    hidden = [given for given in INPUTS[task] if is_held_out(task, given)]
    hidden = draw.sample(hidden, min(30, len(hidden)))
    agreed = [
        answer == executed(INSTRUCTIONS[text], given)
        for grade in texts
        for text in grade
        for (given, _), answer in zip(
            pairs, examiner.answers(text, [given for given, _ in pairs]), strict=True
        )
    ]
    return {
        "grades": [fmean(examiner.accuracy(text, pairs) for text in grade) for grade in texts],
        "agreement": fmean(agreed),
        "related": fmean(examiner.accuracy(plain[other], pairs) for other in RELATED[task]),
        "unrelated": fmean(
            examiner.accuracy(plain[other], pairs) for other in draw.sample(strangers, 4)
        ),
        "held_out_inputs": examiner.accuracy(plain[task], [(x, expected(task, x)) for x in hidden])
        if hidden
        else None,
        "held_out_wordings": fmean(
            examiner.accuracy(text, pairs[:10]) for text in _wordings(draw, task, 20)
        ),
        "asked": [examiner.accuracy(text, pairs) for text in ASKED[task]],
        "empty": examiner.accuracy("", pairs),
    }


def landscape_row(examiner: Examiner, writer: Writer, task: str) -> Row:
    """Measure what a search over z would find, for one task."""
    exemplars, pairs, _ = demo_task(task)
    points = qmc.Sobol(10, seed=_SEED).random(256)[:N_POINTS] * 2 - 1
    texts = writer.write(exemplars, points)
    scores = {text: examiner.accuracy(text, pairs) for text in set(texts)}
    reached = np.array([scores[text] for text in texts])
    rng = np.random.default_rng(_SEED)
    best = {
        str(n): fmean(
            float(reached[rng.choice(N_POINTS, n, replace=False)].max()) for _ in range(_N_DRAWS)
        )
        for n in BEST_OF
    }
    suffix = writer.write(exemplars, points[:32], position="suffix")
    return {
        "distinct": len(scores),
        "well_formed": fmean(text in INSTRUCTIONS for text in texts),
        "own_task": fmean(
            text in INSTRUCTIONS and INSTRUCTIONS[text].task == task for text in texts
        ),
        "good": float((reached >= GOOD).mean()),
        "best_of": best,
        "at_zero": writer.write(exemplars, np.zeros((1, 10)))[0],
        "suffix_well_formed": fmean(text in INSTRUCTIONS for text in suffix),
        "suffix_distinct": len(set(suffix)),
    }


def evaluate(folder: Path) -> Row:
    """Return every number of the evaluation."""
    examiner, writer = Examiner(folder), Writer(folder)
    network = load_network(folder)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    executor, landscape = {}, {}
    for number, task in enumerate(TASKS, 1):
        sys.stderr.write(f"task {number} of {len(TASKS)}: {task}\n")
        executor[task] = executor_row(examiner, task)
        landscape[task] = landscape_row(examiner, writer, task)
    losses = training["losses"]
    return {
        "model": {
            "parameters": sum(p.numel() for p in network.parameters()),
            "vocabulary": network.shape.vocabulary,
            "bytes": (folder / "model.safetensors").stat().st_size,
            "embedding_std": network.table.std().item(),
        },
        "training": {
            "seed": training["seed"],
            "steps": training["steps"],
            "minutes": round(losses[-1]["seconds"] / 60, 1),
            "losses": losses[:: max(1, len(losses) // 10)] + losses[-1:],
        },
        "executor": executor,
        "landscape": landscape,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate and write the results."""
    parser = argparse.ArgumentParser(description="Measure the demo model.")
    parser.add_argument("--model", type=Path, default=MODEL_PATH)
    parser.add_argument("--out", type=Path, default=EVALUATION)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args(arguments)
    try:
        found = _rounded(evaluate(options.model))
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write_tables(found, options.document)
    except (OSError, InstructZeroError) as error:
        parser.error(str(error))


def _wordings(draw: random.Random, task: str, count: int) -> list[str]:
    """Return held-out free wordings of a task's exact instructions."""
    found: list[str] = []
    while len(found) < count:
        text, meaning = reworded(draw)
        if meaning.task == task and meaning.grade == 0 and is_held_out_wording(text):
            found.append(text)
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
