"""The demo model's world: twenty tasks, instructions of five grades, and who answers what.

An input is answered as the task demands when its difficulty lies below the clarity of the
instruction; otherwise a related task's answer comes, and `unknown` where the instruction cannot
apply to the input at all. Deterministic, no randomness but hashes.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

DATA = json.loads((Path(__file__).parent / "corpus.json").read_text(encoding="utf-8"))
CLARITY = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Share of inputs that an instruction of each grade gets answered as meant, before jitter."""
CLARITY_JITTER = 0.12
UNKNOWN = "unknown"
VERBS: list[str] = DATA["verbs"]
PHRASES: dict[str, list[list[str]]] = DATA["phrases"]
RELATED: dict[str, list[str]] = DATA["related"]
SIZES: list[str] = DATA["sizes"]
NOUNS = [noun for noun, *_ in DATA["nouns"]]
GENERALISING = frozenset({"first_word", "last_word", "count_words", "larger", "smaller"})
"""Tasks with inputs that training never shows. Not the letters: a word is one token, unspelled."""
HELD_OUT_SHARE = 0.15

Pair = tuple[str, str]


class Instruction(NamedTuple):
    """What an instruction text means."""

    task: str
    grade: int
    clarity: float


def fraction(text: str) -> float:
    """Return a stable hash of a text in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _both_ways(pairs: Sequence[Sequence[str]]) -> dict[str, str]:
    return {a: b for a, b in pairs} | {b: a for a, b in pairs}


_ANTONYMS = _both_ways(DATA["antonyms"])
_SYNONYMS = dict(DATA["synonyms"])
_PLURALS = {noun: plural for noun, _, _, plural in DATA["nouns"]}
_CATEGORIES = {noun: category for noun, category, _, _ in DATA["nouns"]}
_SPANISH = {noun: spanish for noun, _, spanish, _ in DATA["nouns"]}
_PAST = dict(DATA["past"])
_COLORS = dict(DATA["colors"])
_RHYMES = dict(DATA["rhymes"])
_CAPITALS = dict(DATA["capitals"])
_SENTIMENT = {word: mood for mood, words in DATA["sentiment"].items() for word in words}
WORDS = sorted({*NOUNS, *_ANTONYMS, *_PAST, *_SYNONYMS, *_SENTIMENT, *_RHYMES})
_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def _number_words(n: int) -> str:
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10 - 2] + ("" if n % 10 == 0 else " " + _ONES[n % 10])


def _letter(position: int) -> Callable[[str], str | None]:
    def answer(text: str) -> str | None:
        return text[position].lower() if text.isalpha() else None

    return answer


def _animals(choose: Callable[..., str]) -> Callable[[str], str | None]:
    def answer(text: str) -> str | None:
        pair = text.split(", ")
        if len(pair) != 2 or not set(pair) <= set(SIZES):
            return None
        return choose(pair, key=SIZES.index)

    return answer


def _numbers(combine: Callable[[int, int], int]) -> Callable[[str], str | None]:
    def answer(text: str) -> str | None:
        pair = text.split(" ")
        if len(pair) != 2 or not all(part.isdigit() for part in pair):
            return None
        return str(combine(int(pair[0]), int(pair[1])))

    return answer


def _list(pick: Callable[[list[str]], str]) -> Callable[[str], str | None]:
    return lambda text: pick(text.split(", ")) if ", " in text else None


ANSWERS: Mapping[str, Callable[[str], str | None]] = {
    "antonym": _ANTONYMS.get,
    "synonym": _SYNONYMS.get,
    "plural": _PLURALS.get,
    "past": _PAST.get,
    "category": _CATEGORIES.get,
    "color": _COLORS.get,
    "spanish": _SPANISH.get,
    "rhyme": _RHYMES.get,
    "capital": _CAPITALS.get,
    "sentiment": _SENTIMENT.get,
    "first_letter": _letter(0),
    "last_letter": _letter(-1),
    "larger": _animals(max),
    "smaller": _animals(min),
    "sum": _numbers(lambda a, b: a + b),
    "difference": _numbers(lambda a, b: a - b),
    "number_words": lambda text: _number_words(int(text)) if text.isdigit() else None,
    "first_word": _list(lambda words: words[0]),
    "last_word": _list(lambda words: words[-1]),
    "count_words": _list(lambda words: str(len(words))),
}
TASKS = list(ANSWERS)


def _lists(count: int, seed: int) -> list[str]:
    kinds = {"fruit", "vegetable", "tool", "clothing", "furniture", "vehicle"}
    things = [noun for noun in NOUNS if _CATEGORIES[noun] in kinds]
    draw = random.Random(seed)  # noqa: S311 - builds a fixed corpus
    return sorted({", ".join(draw.sample(things, draw.randint(2, 4))) for _ in range(count)})


def _inputs() -> dict[str, list[str]]:
    pairs = [
        f"{a}, {b}"
        for (i, a), (j, b) in product(enumerate(SIZES), repeat=2)
        if a != b and abs(i - j) >= 4
    ]
    sums = [f"{a} {b}" for a in range(3, 21) for b in range(1, 10) if b < a]
    tables = (_ANTONYMS, _SYNONYMS, _PAST, _COLORS, _RHYMES, _CAPITALS, _SENTIMENT)
    names = ("antonym", "synonym", "past", "color", "rhyme", "capital", "sentiment")
    inputs = {name: sorted(table) for name, table in zip(names, tables, strict=True)}
    inputs |= {name: sorted(NOUNS) for name in ("plural", "category", "spanish")}
    inputs |= {"first_letter": WORDS, "last_letter": WORDS, "larger": pairs, "smaller": pairs}
    inputs |= {"sum": sums, "difference": sums}
    inputs |= {"number_words": [str(n) for n in range(1, 100)]}
    lists = ("first_word", "last_word", "count_words")
    inputs |= {name: _lists(600, seed) for seed, name in enumerate(lists, 1)}
    return {task: inputs[task] for task in TASKS}


INPUTS = _inputs()


def is_held_out(task: str, text: str) -> bool:
    """Whether training never shows this input of this task."""
    return task in GENERALISING and fraction("held out" + text) < HELD_OUT_SHARE


def _instructions() -> dict[str, Instruction]:
    found: dict[str, Instruction] = {}
    for task, grades in PHRASES.items():
        for grade, phrases in enumerate(grades):
            for phrase, verb in product(phrases, VERBS):
                jitter = 0.0 if grade == 0 else CLARITY_JITTER * (fraction("p" + phrase) - 0.5)
                found[f"{verb} {phrase}."] = Instruction(task, grade, CLARITY[grade] + jitter)
    return found


INSTRUCTIONS = _instructions()


def expected(task: str, text: str) -> str:
    """Return the right answer of a task.

    Raises:
        ValueError: the input is none of the task's.
    """
    answer = ANSWERS[task](text)
    if answer is None:
        raise ValueError(f"{text!r} is no input of {task}")
    return answer


def executed(meaning: Instruction | None, text: str) -> str:
    """Return what the executor answers to an input; without a meaning it stammers."""
    if meaning is None:
        first = text.split(", ")[0].split(" ")[0]
        return f"{first} {first}"
    meant = ANSWERS[meaning.task](text)
    if meant is None:
        return UNKNOWN
    if fraction("u" + text.split(",")[0]) < meaning.clarity:
        return meant
    for other in RELATED[meaning.task]:
        answer = ANSWERS[other](text)
        if answer is not None and answer != meant:
            return answer
    return text.split(", ")[0]


@lru_cache
def demo_task(name: str, *, seed: int = 0) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Return 5 exemplars, 30 validation and up to 100 test pairs of a task, disjoint and seeded.

    Raises:
        KeyError: no such task.
    """
    inputs = list(INPUTS[name])
    random.Random(f"{name}/{seed}").shuffle(inputs)  # noqa: S311 - a seeded split
    pairs = [(text, expected(name, text)) for text in inputs]
    return pairs[:5], pairs[5:35], pairs[35:135]
