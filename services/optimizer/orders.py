"""What the buyer passes around: an order, the chunks it is cut into, and the lines that came."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from instructzero.contracts import ScoreLine


@dataclass(frozen=True)
class Order:
    """What to buy: (arm, example) pairs of one split, for one step."""

    step: int
    split: str
    pairs: Sequence[tuple[int, int]]

    @property
    def is_check(self) -> bool:
        """Whether it is for the final check; the search leaves what that needs."""
        return self.split == "test"

    def chunks(self, missing: Iterable[tuple[int, int]], size: int) -> list[Chunk]:
        """Return what is missing in chunks of one arm each, arms in the order decided."""
        open_chunks: dict[int, Chunk] = {}
        chunks: list[Chunk] = []
        for arm, example in missing:
            chunk = open_chunks.get(arm)
            if chunk is None or len(chunk.left) >= size:
                chunk = open_chunks[arm] = Chunk(self, arm, [])
                chunks.append(chunk)
            chunk.left.append(example)
        return chunks


@dataclass(eq=False)
class Chunk:
    """Examples of one arm that are handed over together; each in `left` holds a slot."""

    order: Order
    arm: int
    left: list[int]


class Bought(NamedTuple):
    """A line on its way to the database; `example` is None if it will be handed over again."""

    stored: asyncio.Future[bool]
    line: ScoreLine
    example: int | None
