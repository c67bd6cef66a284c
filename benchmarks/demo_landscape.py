"""A task of the bundled demo model as a landscape: its own soft prompts, instructions and answers.

The same model writes and answers; texts and answers are computed when they are asked for. The seed
picks the task, the split of its examples and the projection from z to the soft prompt.
"""

from __future__ import annotations

from functools import cache
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.landscapes import LandscapeSpec
from services.demo import MODEL_PATH
from services.demo.corpus import PHRASES, TASKS, VERBS, demo_task
from services.demo.executor import Executor
from services.demo.lessons import DEFAULT
from services.demo.writer import Writer
from services.optimizer.search.strategy import FloatArray

MAX_TOKENS = 16
DIM = 10


@cache
def _executor() -> Executor:
    torch.set_num_threads(1)  # several run side by side
    return Executor(MODEL_PATH)


class DemoLandscape:
    """What `play` needs of a landscape, from the demo model.

    Attributes:
        best: true score of the task's exact instruction.
    """

    def __init__(self, seed: int) -> None:
        """Choose task and split; nothing is generated yet."""
        self.task = list(TASKS)[seed % len(TASKS)]
        self._exemplars, validation, test = demo_task(self.task, seed=seed)
        self._validation, self._pairs = validation, validation + test
        self.dim = DIM
        self.spec = LandscapeSpec("demo", n_validation=len(validation))
        self._writer = Writer(MODEL_PATH, seed=seed)
        self._texts: list[str] = []
        self._number: dict[str, int] = {}
        self._truth: dict[str, float] = {}
        self.best = self._true_score(f"{VERBS[0]} {PHRASES[self.task][0][0]}.")

    def text_of(self, points: FloatArray) -> NDArray[np.intp]:
        """Number of the instruction that each point gives, p."""
        _executor()
        numbers = []
        for text in self._writer.write(self._exemplars, points):
            number = self._number.setdefault(text, len(self._texts))
            if number == len(self._texts):
                self._texts.append(text)
            numbers.append(number)
        return np.array(numbers, dtype=np.intp)

    def answer(self, text: int, example: int) -> str:
        """What the model answers to a validation example."""
        return self._ask(self._texts[text], self._validation[example][0])

    def score(self, text: int, example: int) -> float:
        """Whether that answer is right."""
        return float(self.answer(text, example) == self._validation[example][1])

    def true_score(self, text: int) -> float:
        """Score on all examples of the task but the exemplars."""
        return self._true_score(self._texts[text])

    def _true_score(self, instruction: str) -> float:
        if instruction not in self._truth:
            answers = [self._ask(instruction, given) == right for given, right in self._pairs]
            self._truth[instruction] = fmean(answers)
        return self._truth[instruction]

    def _ask(self, instruction: str, given: str) -> str:
        content = DEFAULT.format(instruction=instruction, input=given)
        prompt = _executor().prompt([{"role": "user", "content": content}], MAX_TOKENS)
        return _executor().answer(prompt, MAX_TOKENS).text
