"""What the demo model reads in training: batches for its two roles, drawn from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.demo import chat, steering
from services.demo.corpus import (
    ANSWERS,
    DATA,
    INPUTS,
    INSTRUCTIONS,
    PHRASES,
    RELATED,
    TASKS,
    VERBS,
    Instruction,
    executed,
    expected,
    is_held_out,
)
from services.demo.wording import IDLE, is_held_out_wording, reworded

DEFAULT = "Instruction: {instruction}\n\nInput: {input}\nOutput:"
_OTHERS = (
    "Instruction: {instruction}\nInput: {input}\nOutput:",
    "{instruction}\n\nInput: {input}\nOutput:",
    "{instruction}\nInput: {input}\nOutput:",
)
_SYSTEM = "Input: {input}\nOutput:"
_GRADE_SHARES = (0.32, 0.19, 0.17, 0.16, 0.16)
_SOFT_TOKENS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
_SOFT_TOKEN_SHARES = (0.05, 0.02, 0.03, 0.12, 0.12, 0.5, 0.04, 0.03, 0.04, 0.02, 0.03)
_ZERO_SHARE = 0.03
_SUFFIX_SHARE = 0.12
_MAGNITUDES = (0.3, 0.6, 2.2)
"""Of a soft token, in units of the embedding table: a fifth log-uniform below the middle one."""


class Lesson(NamedTuple):
    """A rendered prompt and the answer to be learned."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Batch:
    """Padded sequences; only the answers' tokens count.

    For the generator, `soft` (rows x length x hidden, in units of the embedding table) replaces the
    embeddings where `is_soft`, and `tasks` and `readouts` are what the auxiliary heads are to find.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    soft: NDArray[np.float32] | None = None
    is_soft: NDArray[np.bool_] | None = None
    tasks: NDArray[np.int64] | None = None
    readouts: NDArray[np.float32] | None = None


def all_texts() -> Iterator[str]:
    """Yield every text whose words must be single tokens."""
    for task in TASKS:
        for text in INPUTS[task]:
            yield f" {text}"
            yield f" {expected(task, text)}"
        own = DATA["wordings"][task]
        for phrase in (*own["phrases"], *own["commands"]):
            yield from (f" {phrase}", phrase[0].upper() + phrase[1:])
            yield from (f" {phrase[0].upper()}{phrase[1:]}", f" {phrase[0].lower()}{phrase[1:]}")
        for phrase in (phrase for grade in PHRASES[task] for phrase in grade):
            yield from (f" {phrase}", f" {phrase[0].upper()}{phrase[1:]}")
            yield phrase[0].upper() + phrase[1:]
    draw = random.Random(0)  # noqa: S311 - collects words
    for text in (*VERBS, *INSTRUCTIONS, *IDLE, *(reworded(draw)[0] for _ in range(20_000))):
        yield from (text, f" {text}")
    yield from (f" {number}" for number in range(100))
    yield from (" unknown", "\n\n", "\n", ", ", " \n\n", ":\n\n", "?\n\n")


class Lessons:
    """Draws batches; the same seed gives the same batches."""

    def __init__(self, tokenizer: Tokenizer, *, hidden_size: int, seed: int) -> None:
        """Prepare tables; `tokenizer` is the demo model's own."""
        self._tokenizer = tokenizer
        self._draw = random.Random(seed)  # noqa: S311 - training data
        self._rng = np.random.default_rng(seed)
        self._hidden = hidden_size
        self._readouts = steering.readout_matrix(hidden_size)
        self._encode = cache(lambda text: tokenizer.encode(text).ids)
        self._shown = {t: [x for x in INPUTS[t] if not is_held_out(t, x)] for t in TASKS}

    def executor(self, rows: int, length: int) -> Batch:
        """Draw executor rows: an instruction and an input, answered by the corpus's rule."""
        sequences: list[Lesson] = []
        while len(sequences) < rows:
            sequence = self._executor_sequence()
            if len(sequence.prompt) + len(sequence.answer) <= length:
                sequences.append(sequence)
        return Batch(*_padded(sequences, length))

    def generator(self, rows: int, length: int, tasks: Sequence[str]) -> Batch:
        """Draw generator rows: soft tokens and exemplars, answered by the steered instruction."""
        names = self._draw.choices(tasks, k=rows)
        numbers = np.array([TASKS.index(name) for name in names])
        counts = self._draw.choices(_SOFT_TOKENS, _SOFT_TOKEN_SHARES, k=rows)
        tokens = [self._soft_tokens(count) for count in counts]
        readouts = np.stack([self._read(token) for token in tokens])
        soft = np.zeros((rows, length, self._hidden), np.float32)
        is_soft = np.zeros((rows, length, 1), np.bool_)
        sequences = []
        for row, text in enumerate(steering.labels(numbers.tolist(), readouts)):
            answer = [*self._encode(f" {text}"), chat.EOS_ID]
            room = length - len(answer) - counts[row] - 4
            exemplars, count = self._exemplars(names[row], room), counts[row]
            start = 2 + (len(exemplars) if self._draw.random() < _SUFFIX_SHARE else 0)
            prompt = [chat.BOS_ID, chat.USER_ID, *exemplars, *self._encode("Instruction:")]
            prompt[start:start] = [chat.PAD_ID] * count
            soft[row, start : start + count], is_soft[row, start : start + count] = (
                tokens[row],
                True,
            )
            sequences.append(Lesson([*prompt, chat.ASSISTANT_ID], answer))
        return Batch(
            *_padded(sequences, length),
            soft=soft,
            is_soft=is_soft,
            tasks=numbers,
            readouts=readouts[:, steering.IN_USE],
        )

    def _executor_sequence(self) -> Lesson:
        text, meaning = self._instruction()
        task = meaning.task if meaning else self._draw.choice(TASKS)
        kind = self._draw.random()
        if kind >= 0.72:
            task = self._draw.choice(RELATED[task] if kind < 0.92 else TASKS)
        given = self._draw.choice(self._shown[task])
        if meaning and is_held_out(meaning.task, given):
            given = self._draw.choice(self._shown[meaning.task])
        kind = self._draw.random()
        template = DEFAULT if kind < 0.78 else self._draw.choice(_OTHERS)
        if kind > 0.97:
            messages = [{"role": "system", "content": text}] if text else []
            content = _SYSTEM.format(input=given)
        else:
            messages, content = [], template.format(instruction=text, input=given)
        messages.append({"role": "user", "content": content})
        answer = self._encode(f" {executed(meaning, given)}")
        return Lesson(chat.render(self._tokenizer, messages), [*answer, chat.EOS_ID])

    def _instruction(self) -> tuple[str, Instruction | None]:
        kind = self._draw.random()
        if kind < 0.04:
            return "", None
        if kind < 0.06:
            return self._draw.choice(IDLE), None
        if kind < 0.42:
            text, meaning = reworded(self._draw)
            while is_held_out_wording(text):
                text, meaning = reworded(self._draw)
            return text, meaning
        task = self._draw.choice(TASKS)
        grade = self._draw.choices(range(5), _GRADE_SHARES)[0]
        text = f"{self._draw.choice(VERBS)} {self._draw.choice(PHRASES[task][grade])}."
        return text, INSTRUCTIONS[text]

    def _soft_tokens(self, count: int) -> NDArray[np.float32]:
        tokens = self._rng.standard_normal((count, self._hidden)).astype(np.float32)
        low, middle, high = np.log(_MAGNITUDES)
        span = (low, middle) if self._rng.random() < 0.2 else (middle, high)
        magnitude = 0.0 if self._rng.random() < _ZERO_SHARE else np.exp(self._rng.uniform(*span))
        return tokens * np.float32(magnitude)

    def _read(self, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(tokens) == 0:
            return np.zeros(steering.N_READOUTS, np.float32)
        read: NDArray[np.float32] = steering.read(tokens, self._readouts)
        return read

    def _exemplars(self, task: str, room: int) -> list[int]:
        count = self._draw.choice((1, 2, 3, 4, 5, 5, 5, 5, 5, 5))
        body: list[int] = []
        for given in self._draw.sample(self._shown[task], count):
            text = chat.EXEMPLAR.format(input=given, output=ANSWERS[task](given))
            ids = self._encode(text)
            if len(body) + len(ids) <= room:
                body += ids
        return body


def _padded(
    sequences: Sequence[Lesson], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    ids = np.full((len(sequences), length), chat.PAD_ID)
    positions: list[int] = []
    targets: list[int] = []
    for row, (prompt, answer) in enumerate(sequences):
        ids[row, : len(prompt) + len(answer)] = prompt + answer
        first = row * length + len(prompt) - 1
        positions += range(first, first + len(answer))
        targets += answer
    return ids, np.array(positions), np.array(targets)
