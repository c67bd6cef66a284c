"""The ask/tell Protocol every strategy meets; decisions and observations as frozen dataclasses.

A strategy is a pure, deterministic state machine. It is told everything it knows through `observe`,
in journal order, and draws randomness only from (job seed, step, purpose). The caller journals each
`Decision` before acting on it; on resume it replays decisions and observations and never proposes
again what is already in the journal, so a strategy that must remember something between steps (warm
starts, for example) puts it into `Decision.memo`.

Names: an *arm* is a distinct instruction text, numbered 0, 1, 2... in the order the caller first
saw it; an *example* is a position in the validation set; a *point* is a latent z in [-1, 1]^d,
numbered in the order proposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What a strategy may know of a job.

    Attributes:
        dim: d, length of a latent point.
        n_validation: number of validation examples, 5 to 2,000.
        seed: the job's seed.
        given: texts that are arms 0..k-1 from the start (the user's baseline and own instructions).
        calls: evaluations the search may buy in all, None when not bounded.
        trials: distinct instructions the search may try in all, None when not bounded.
        calls_per_round: how many evaluations keep the target busy; a hint, a constant of the job.
            The default is what a job with up to 16 calls in flight has bought or decided to buy
            and not seen: two steps of eight.
        stop_score: a fully evaluated arm with at least this score ends the search; None: never.
    """

    dim: int
    n_validation: int
    seed: int
    given: tuple[str, ...] = ()
    calls: int | None = None
    trials: int | None = None
    calls_per_round: int = 16
    stop_score: float | None = None


@dataclass(frozen=True)
class Room:
    """What is left, at the moment of asking. None: not bounded.

    `calls` excludes what the final check reserves and what retries and calls in doubt cost.
    """

    calls: int | None = None
    trials: int | None = None
    points: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """One arm to be tried on one validation example."""

    arm: int
    example: int


@dataclass(frozen=True)
class Decision:
    """What to do next. At least one of `points` and `evaluations` is not empty.

    Attributes:
        points: latent points to turn into instructions, each d floats in [-1, 1].
        evaluations: (arm, example) pairs to buy; no pair twice in a job.
        reason: a short word for the record ("initial_design", "race", "expected_improvement"...).
        point_notes: for each point, figures for the record: {"acquisition": ..., "mean": ...}.
        memo: JSON-serialisable state that later proposals depend on; given back by `observe`.
        snapshot: JSON-serialisable record of the surrogate for plots; deleting it changes nothing.
    """

    points: tuple[tuple[float, ...], ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    reason: str = ""
    point_notes: tuple[Mapping[str, float], ...] = ()
    memo: Mapping[str, object] = field(default_factory=dict)
    snapshot: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class GeneratedText:
    """What the generator wrote for one point.

    Attributes:
        point: number of the point.
        arm: the arm its text belongs to; None if a guard rejected the text.
        text: the instruction (empty when rejected).
        features: pooled hidden state, if asked for.
    """

    point: int
    arm: int | None
    text: str
    features: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Scored:
    """One bought evaluation: the metric's value in [0, 1] and what the target answered."""

    arm: int
    example: int
    score: float
    answer: str


@dataclass(frozen=True)
class Recommendation:
    """The arm a strategy would stake the job on, with its own (not the reported) uncertainty."""

    arm: int
    mean: float
    sd: float


class Strategy(Protocol):
    """Ask/tell. Every method is deterministic; none does IO or reads a clock."""

    def propose(self, room: Room) -> Decision | None:
        """Return the next decision, or None when nothing more is worth buying or allowed.

        May be called while earlier decisions are still in flight: their evaluations and points are
        pending and must not be proposed again.
        """
        ...

    def decided(self, decision: Decision) -> None:
        """Take note of a decision, freshly proposed or replayed; its work is pending from now on.

        The caller calls it exactly once per decision, in journal order. `propose` itself changes
        nothing that a replayed `decided` would not.
        """
        ...

    def observe(self, texts: Sequence[GeneratedText], scores: Sequence[Scored]) -> None:
        """Take in results, in any order and any part of what is pending."""
        ...

    def recommend(self) -> Recommendation | None:
        """Return the arm the strategy would stake the job on, or None if nothing was evaluated."""
        ...

    def state(self) -> Mapping[str, object]:
        """JSON-serialisable figures of the surrogate for plots; empty where there is none.

        `leaders`: arms with posterior mean and sd, best first; `chance_of_better`: that another
        known arm is better than the leader; `slice`: see `box.improvement_slice`.
        """
        ...
