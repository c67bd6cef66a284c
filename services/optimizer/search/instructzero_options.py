"""Options of `instructzero`, apart from the strategy so that reading them needs no BoTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InstructZeroOptions:
    """Options of `instructzero`.

    Attributes:
        n_initial: points of the initial design.
        batch: points proposed in each later step.
        examples: examples every instruction is tried on; None: the whole validation set.
        similarity: how two answers are compared in Eq. 8: `exact` match or token `f1`;
            `scores` compares the score vectors instead, as the authors' code does.
    """

    n_initial: int = 25
    batch: int = 25
    examples: int | None = None
    similarity: str = "exact"

    def __post_init__(self) -> None:
        if min(self.n_initial, self.batch, self.examples or 1) < 1:
            raise ValueError("n_initial, batch and examples must be at least 1")
        if self.similarity not in ("exact", "f1", "scores"):
            raise ValueError("similarity must be exact, f1 or scores")
