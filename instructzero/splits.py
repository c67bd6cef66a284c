"""Exemplars, validation and test out of one or two files: seeded, disjoint, large enough.

The split depends on the seed and the records alone, not on their order. No input is in two parts:
test examples are set aside first where they come from a file of their own. A number that is
written down is kept or refused; a default shrinks to what is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from instructzero.contracts import MIN_VALIDATION, DatasetSpec, Example


class Read(NamedTuple):
    """One usable record: the example and what makes two records the same question."""

    example: Example
    identity: str


class Source(NamedTuple):
    """The different records of one file."""

    name: str
    records: list[Read]


class Parts(NamedTuple):
    """The three parts of a task."""

    exemplars: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


class TooFewExamples(ValueError):
    """A file holds fewer examples than its parts need; `field` is the number to lower."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


def unique(reads: Iterator[Read]) -> list[Read]:
    """Keep the first record of each question, with what every record of it accepts."""
    seen: dict[str, Read] = {}
    for read in reads:
        first = seen.get(read.identity)
        if first is None:
            seen[read.identity] = read
            continue
        accepted = tuple(dict.fromkeys((*first.example.output, *read.example.output)))[:200]
        merged = Example(input=first.example.input, output=accepted)
        seen[read.identity] = Read(merged, read.identity)
    return list(seen.values())


def split(pool: Source, test: Source | None, dataset: DatasetSpec) -> Parts:
    """Split the pool; `test` is None where the pool holds the test examples too.

    Raises:
        TooFewExamples: says how many there are, how many are needed and what to lower.
    """
    chosen: list[Read] = []
    if test is not None:
        n_test = _sizes(test, dataset, {"test": 0})["test"]
        chosen = _ranked(test.records, dataset.seed, "test")[:n_test]
    taken = {read.identity for read in chosen}
    free = [read for read in pool.records if read.identity not in taken]
    ranked = _ranked(free, dataset.seed, "pool")
    smallest = {"exemplars": 1, "validation": MIN_VALIDATION} | ({} if test else {"test": 0})
    sizes = _sizes(Source(pool.name, ranked), dataset, smallest)
    first, second = sizes["exemplars"], sizes["exemplars"] + sizes["validation"]
    if test is None:
        chosen = ranked[second : second + sizes["test"]]
    return Parts(
        tuple(read.example for read in ranked[:first]),
        tuple(read.example for read in ranked[first:second]),
        tuple(read.example for read in chosen),
    )


def _ranked(reads: list[Read], seed: int, purpose: str) -> list[Read]:
    """Return the records in an order that depends on the seed and each record alone."""

    def rank(read: Read) -> bytes:
        return hashlib.sha256(f"{seed}:{purpose}:{read.identity}".encode()).digest()

    return sorted(reads, key=rank)


def _sizes(source: Source, dataset: DatasetSpec, smallest: dict[str, int]) -> dict[str, int]:
    """Return the size of each part: what was written, or the default as far as it goes."""
    written = {name for name in smallest if name in dataset.model_fields_set}
    wanted = {name: getattr(dataset, name) for name in smallest}
    sizes = {name: wanted[name] if name in written else smallest[name] for name in smallest}
    missing = sum(sizes.values()) - len(source.records)
    if missing > 0:
        raise _too_few(source, sizes, smallest, missing)
    for name in smallest:
        if name not in written:
            spare = len(source.records) - sum(sizes.values())
            sizes[name] += min(spare, wanted[name] - sizes[name])
    if "test" not in written and len(smallest) > 1 and sizes.get("test", 0) < MIN_VALIDATION:
        sizes["test"] = 0  # too few to measure on: the job sets validation examples aside instead
    return sizes


def _too_few(
    source: Source, sizes: dict[str, int], smallest: dict[str, int], missing: int
) -> TooFewExamples:
    there, needed = len(source.records), sum(sizes.values())
    parts = " + ".join(f"{name} {size}" for name, size in sizes.items())
    field = max(sizes, key=lambda name: sizes[name] - smallest[name])
    lowered = sizes[field] - missing
    advice = f"lower {field} to {lowered}" if lowered >= max(smallest[field], 1) else ""
    advice = advice or f"add at least {missing} examples, or lower these numbers"
    return TooFewExamples(
        field,
        f"{source.name} has {there} different examples, {needed} are needed ({parts}): {advice}",
    )
