"""Records of the instruction-induction benchmark: which field is asked and which answers count.

A file is `{"examples": {"1": {...}, ...}}`. Most records hold `input` and `output`; some tasks have
fields of their own, recognised by the fields, so that unseen files of the same layout load too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Question(NamedTuple):
    """What is asked, every accepted answer (the preferred one first), and a key for repeats."""

    text: str
    outputs: list[str]
    identity: str


def read_induction(document: Any, seed: int) -> Iterator[Question]:
    """Yield the questions of one file, in its order.

    Args:
        document: the parsed JSON.
        seed: decides in which order cause and effect are shown.

    Raises:
        ValueError: the document is not of this layout; says which example and which fields it has.
    """
    examples = document.get("examples") if isinstance(document, Mapping) else None
    if isinstance(examples, Mapping):
        examples = list(examples.values())
    if not isinstance(examples, list):
        raise ValueError('the file has no "examples"')  # noqa: TRY004 - a wrong file, not a wrong call
    for number, record in enumerate(examples, start=1):
        if not isinstance(record, Mapping):
            raise ValueError(  # noqa: TRY004 - as above
                f"example {number} is not an object"
            )
        try:
            yield _question(record, seed)
        except KeyError as error:
            raise ValueError(
                f"example {number} has no {error.args[0]!r}; it has {', '.join(map(str, record))}"
            ) from error


def _question(record: Mapping[str, Any], seed: int) -> Question:
    if "cause" in record and "effect" in record:
        return _cause_and_effect(record, seed)
    if "items" in record and "input" not in record:
        return _common_concept(record)
    text = str(record["input"]).strip()
    outputs = [*_texts(record, "output"), *_texts(record, "possible_translations", optional=True)]
    # A word rhymes with itself, and the benchmark lists it; echoing the input is no answer.
    rhymes = _texts(record, "other_rhymes", optional=True)
    outputs += [rhyme for rhyme in rhymes if rhyme.casefold() != text.casefold()]
    return Question(text, _distinct(outputs), text)


def _cause_and_effect(record: Mapping[str, Any], seed: int) -> Question:
    """Show both sentences in an order that the seed decides; the cause is the answer."""
    pair = [str(record["cause"]).strip(), str(record["effect"]).strip()]
    identity = "\n".join(pair)
    digest = hashlib.sha256(f"{seed}:order:{identity}".encode()).digest()
    first, second = pair if digest[0] % 2 == 0 else reversed(pair)
    return Question(f"Sentence 1: {first} Sentence 2: {second}", [pair[0]], identity)


def _common_concept(record: Mapping[str, Any]) -> Question:
    """Show every item; the authors' loader drops the last one."""
    text = ", ".join(_texts(record, "items"))
    concepts = _texts(record, "all_common_concepts", optional="concept" in record)
    return Question(text, _distinct([*_texts(record, "concept", optional=True), *concepts]), text)


def _texts(record: Mapping[str, Any], field: str, *, optional: bool = False) -> list[str]:
    value = record.get(field, []) if optional else record[field]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(text.strip() for text in texts))
