"""A journaled decision, and how the journal writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.optimizer.search.strategy import Decision, Evaluation


@dataclass
class Step:
    """A journaled decision and whether all of it was carried out.

    `kind`: `search`, `baseline` (the first part of the final check) or `final`.
    """

    number: int
    kind: str
    content: Mapping[str, Any]
    is_done: bool = False

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The (arm, example) pairs to buy."""
        return [(arm, example) for arm, example in self.content.get("evaluations", ())]

    @property
    def n_told(self) -> int:
        """How many steps had been told when this one was decided."""
        n_told: int = self.content.get("n_told", self.number)
        return n_told

    @property
    def points(self) -> Sequence[Sequence[float]]:
        """The latent points to turn into instructions."""
        points: Sequence[Sequence[float]] = self.content.get("points", ())
        return points


def decision_to_json(decision: Decision, *, n_told: int) -> dict[str, Any]:
    """Return the journal's form of a decision that was made knowing the first `n_told` steps."""
    return {
        "n_told": n_told,
        "points": [list(point) for point in decision.points],
        "evaluations": [[e.arm, e.example] for e in decision.evaluations],
        "reason": decision.reason,
        "point_notes": [dict(note) for note in decision.point_notes],
        "memo": dict(decision.memo),
    }


def decision_from_json(content: Mapping[str, Any]) -> Decision:
    """Read a journaled decision back, bit for bit."""
    return Decision(
        points=tuple(tuple(point) for point in content["points"]),
        evaluations=tuple(Evaluation(arm, example) for arm, example in content["evaluations"]),
        reason=content["reason"],
        point_notes=tuple(content["point_notes"]),
        memo=content["memo"],
    )
