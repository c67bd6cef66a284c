"""Synthetic landscapes with the shape of the problem, and a player that drives a strategy on one.

A landscape maps a latent point to one of a few hundred texts and a text to right and wrong answers.
Where its numbers come from (fixed before any strategy was tuned on them):

- Soft prompts map many to one: the box falls into the cells of 20-40 *families* (ways to read the
  exemplars), of very unequal size, and a family into *wordings* that behave almost alike. Cells are
  power diagrams, whose weights set their volumes.
- Most readings of the exemplars are wrong: 60 % of the families score 0-.25, 30 % .25-.6, the rest
  .6-.78, and one is right, about .88 (the spread of per-task scores in the paper's tables). It
  fills 5 / 1 / 0.2 % of the box: easy, medium, hard.
- Nearby families do similar things: a family's ability is the rank of a smooth function of place
  plus as much noise again. `independent` removes the smooth part.
- Some examples are hard for everyone and families fail on examples of their own: an answer is right
  if ability - difficulty + family's luck + wording's luck > 0, all normal, with standard deviations
  1, .8, .5. A target at temperature 0 answers the same question the same way each time.
- Wordings of a family differ with a standard deviation of .03 (at .88) to .06 (at .5) in score, the
  few points by which accuracy moves when a prompt is paraphrased.
- The best score is that of the best text with a cell large enough to be met.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from services.optimizer.search import make_strategy
from services.optimizer.search.strategy import (
    Evaluation,
    FloatArray,
    GeneratedText,
    Problem,
    Room,
    Scored,
)

DIFFICULTY_SD, FAMILY_LUCK_SD, WORDING_LUCK_SD = 1.0, 0.8, 0.5
WORDING_SD, FLAT_WORDING_SD = 0.15, 0.05
TOTAL_SD = float(np.sqrt(DIFFICULTY_SD**2 + FAMILY_LUCK_SD**2 + WORDING_LUCK_SD**2))
N_VOLUME = 20_000
READ_EVERY, READ_SHARE = 20, 0.02


@dataclass(frozen=True)
class LandscapeSpec:
    """One kind of landscape.

    Attributes:
        name: what tables call it.
        good_share: share of the box that gives the right family.
        n_wordings: wordings of each family.
        n_validation: validation examples.
        place: `smooth` (nearby families have similar ability), `independent` (ability has nothing
            to do with place), `none` (text has nothing to do with place).
        flipped: share of answers whose correctness is turned round.
        is_fractional: scores are graded in fifths rather than 0/1.
        is_flat: all families are nearly equal.
    """

    name: str
    good_share: float = 0.01
    n_wordings: int = 12
    n_validation: int = 100
    place: str = "smooth"
    flipped: float = 0.0
    is_fractional: bool = False
    is_flat: bool = False


SPECS: Mapping[str, LandscapeSpec] = {
    spec.name: spec
    for spec in [
        LandscapeSpec("easy", good_share=0.05),
        LandscapeSpec("medium", good_share=0.01),
        LandscapeSpec("hard", good_share=0.002),
        LandscapeSpec("wordings", n_wordings=100),
        LandscapeSpec("independent", place="independent"),
        LandscapeSpec("flipped", flipped=0.05),
        LandscapeSpec("uninformative", place="none"),
        LandscapeSpec("flat", is_flat=True),
        LandscapeSpec("fractional", is_fractional=True),
        LandscapeSpec("twenty", n_validation=20),
    ]
}


class Playable(Protocol):
    """What a strategy can be played on."""

    dim: int
    spec: LandscapeSpec
    best: float

    def text_of(self, points: FloatArray) -> NDArray[np.intp]:
        """Text of each point, p."""
        ...

    def answer(self, text: int, example: int) -> str:
        """What the target answers."""
        ...

    def score(self, text: int, example: int) -> float:
        """The score of that answer."""
        ...

    def true_score(self, text: int) -> float:
        """The score that no strategy sees."""
        ...


class Landscape:
    """One landscape, drawn from a seed.

    Attributes:
        truth: true score of each text, in [0, 1].
        best: the best of them that can be met.
        scores: n_texts x n_validation.
    """

    def __init__(self, spec: LandscapeSpec, seed: int, dim: int = 10) -> None:
        rng = np.random.default_rng(_seed("landscape", spec.name, seed))
        self.spec, self.dim, self._seed = spec, dim, seed
        n_families = int(rng.integers(20, 41))
        self._centres = rng.uniform(-1.0, 1.0, (n_families, dim))
        self._weights = self._volumes(rng, n_families)
        self._anchors = rng.uniform(-1.0, 1.0, (n_families, spec.n_wordings, dim))
        self._anchor_weights = rng.exponential(0.5, (n_families, spec.n_wordings))
        ability = self._abilities(rng, n_families)
        latent = TOTAL_SD * ndtri(ability)[:, None]
        spread = TOTAL_SD * (FLAT_WORDING_SD if spec.is_flat else WORDING_SD)
        latent = latent + rng.normal(0.0, spread, (n_families, spec.n_wordings))
        latent = np.minimum(latent, TOTAL_SD * ndtri(0.95)).reshape(-1)
        self._draw_answers(rng, latent, n_families)
        near = np.clip(self._centres[0] + rng.normal(0.0, 0.3, (N_VOLUME // 4, dim)), -1.0, 1.0)
        met = self.text_of(np.vstack([rng.uniform(-1.0, 1.0, (N_VOLUME, dim)), near]))
        self.best = float(self.truth[np.unique(met)].max())

    def text_of(self, points: FloatArray) -> NDArray[np.intp]:
        """Text of each point, p."""
        if self.spec.place == "none":
            return np.array([self._hashed(point) for point in points], dtype=np.intp)
        family = self._family(points)
        texts = np.empty(len(points), dtype=np.intp)
        for cell in np.unique(family):
            inside = family == cell
            squared = _squared(points[inside], self._anchors[cell]) - self._anchor_weights[cell]
            texts[inside] = cell * self.spec.n_wordings + squared.argmin(axis=1)
        return texts

    def answer(self, text: int, example: int) -> str:
        """What the target answers: right, the family's own mistake, or a common mistake."""
        if self.scores[text, example] == 1.0:
            return f"right {example}"
        family = text // self.spec.n_wordings
        pick = _seed("mistake", self._seed, family, example) % 10
        return f"mistake {family if pick < 6 else -pick} {example}"

    def score(self, text: int, example: int) -> float:
        """The score of that answer."""
        return float(self.scores[text, example])

    def true_score(self, text: int) -> float:
        """The score that no strategy sees."""
        return float(self.truth[text])

    def _family(self, points: FloatArray) -> NDArray[np.intp]:
        squared = _squared(points, self._centres)
        return np.asarray((squared - self._weights).argmin(axis=1), dtype=np.intp)

    def _volumes(self, rng: np.random.Generator, n_families: int) -> FloatArray:
        """Weights of the power diagram; family 0 is the right one and gets its share of the box."""
        weights = rng.normal(0.0, 0.6, n_families)
        box = rng.uniform(-1.0, 1.0, (N_VOLUME, self.dim))
        squared = _squared(box, self._centres)
        others = (squared[:, 1:] - weights[1:]).min(axis=1)
        # Family 0 owns the points whose margin is below its weight: take the quantile.
        weights[0] = np.quantile(squared[:, 0] - others, self.spec.good_share)
        self._shares = np.bincount((squared - weights).argmin(axis=1), minlength=n_families)
        return weights

    def _abilities(self, rng: np.random.Generator, n_families: int) -> FloatArray:
        if self.spec.is_flat:
            flat = rng.uniform(0.58, 0.66, n_families)
            flat[0] = 0.70
            return flat
        n_poor, n_fair = round(0.6 * n_families), round(0.3 * n_families)
        n_close = n_families - 1 - n_poor - n_fair
        levels = np.sort(
            np.concatenate(
                [
                    rng.uniform(0.01, 0.25, n_poor),
                    rng.uniform(0.25, 0.60, n_fair),
                    rng.uniform(0.60, 0.78, n_close),
                ]
            )
        )
        place = -((self._centres[1:] - self._centres[0]) ** 2).sum(axis=1)
        frequencies = rng.normal(0.0, 1.0, (64, self.dim)) / 1.5
        phases = rng.uniform(0.0, 2 * np.pi, 64)
        smooth = np.cos(self._centres[1:] @ frequencies.T + phases) @ rng.normal(size=64)
        signal = _standard(smooth) + 0.7 * _standard(place)
        noise = rng.normal(0.0, 1.0, n_families - 1)
        rank = noise if self.spec.place != "smooth" else _standard(signal) + noise
        abilities = np.empty(n_families)
        abilities[0] = 0.88
        abilities[1 + np.argsort(rank)] = levels
        return abilities

    def _draw_answers(self, rng: np.random.Generator, latent: FloatArray, n_families: int) -> None:
        spec, n = self.spec, self.spec.n_validation
        n_parts = 5 if spec.is_fractional else 1
        difficulty = rng.normal(0.0, DIFFICULTY_SD, (n, 1))
        family_luck = rng.normal(0.0, FAMILY_LUCK_SD, (n_families, n, 1))
        luck = rng.normal(0.0, WORDING_LUCK_SD, (len(latent), n, n_parts))
        luck += np.repeat(family_luck, spec.n_wordings, axis=0)
        is_right = latent[:, None, None] - difficulty + luck > 0.0
        is_right ^= rng.uniform(size=is_right.shape) < spec.flipped
        self.scores: FloatArray = is_right.mean(axis=2)
        right = ndtr(latent / TOTAL_SD)
        self.truth: FloatArray = right * (1.0 - spec.flipped) + (1.0 - right) * spec.flipped

    def _hashed(self, point: FloatArray) -> int:
        number = _seed("text", self._seed, np.round(point, 9).tobytes().hex())
        shares = np.cumsum(self._shares) / self._shares.sum()
        family = int(np.searchsorted(shares, (number % 10**6 + 0.5) / 10**6))
        return family * self.spec.n_wordings + number // 10**6 % self.spec.n_wordings


@dataclass
class Run:
    """What one run of a strategy gave.

    Attributes:
        calls: paid calls at each reading, ascending.
        truth: true score of the arm recommended then.
        best: best true score of the landscape.
        n_points: points generated in all.
        seconds: time spent inside the strategy.
        recommended: text of the last recommendation.
        watched: at each reading, the figure of the strategy's state that was asked for.
    """

    best: float
    calls: list[int] = field(default_factory=list)
    truth: list[float] = field(default_factory=list)
    n_points: int = 0
    seconds: float = 0.0
    recommended: int = 0
    watched: list[float] = field(default_factory=list)

    def at(self, calls: int) -> float:
        """True score of the recommendation after this many calls; 0 before the first reading."""
        index = int(np.searchsorted(self.calls, calls, side="right")) - 1
        return self.truth[index] if index >= 0 else 0.0

    def first_hit(self, share: float = 0.95) -> float:
        """Calls until the recommendation first has this share of the best; inf if never."""
        good = np.array(self.truth) >= share * self.best
        return float(self.calls[int(good.argmax())]) if good.any() else float("inf")

    def sustained(self, share: float = 0.95) -> float:
        """Calls from which on the recommendation always has this share; inf if it never stays."""
        bad = np.flatnonzero(np.array(self.truth) < share * self.best)
        first = int(bad[-1]) + 1 if len(bad) else 0
        return float(self.calls[first]) if first < len(self.calls) else float("inf")


def play(
    name: str,
    landscape: Playable,
    calls: int,
    seed: int,
    options: Mapping[str, object] | None = None,
    problem: Problem | None = None,
    watch: str | None = None,
) -> Run:
    """Drive a strategy over a landscape and read off what it recommends as the scores come in.

    Read every 20 calls, later every 2 % more of them, within decisions too: a strategy that buys
    500 calls at a time would else look as if it recommended nothing until the last of them.
    `watch` names a figure of the strategy's `state` that is read off as well.
    """
    if problem is None:
        problem = Problem(landscape.dim, landscape.spec.n_validation, seed, calls=calls)
    problem = replace(problem, seed=_seed("job", seed) % 2**31)
    strategy = make_strategy(name, problem, options)
    run = Run(best=landscape.best)
    arms: dict[int, int] = {}
    texts: list[int] = []
    spent = 0
    while True:
        begun = time.perf_counter()
        decision = strategy.propose(Room(calls=calls - spent))
        if decision is None:
            return run
        strategy.decided(decision)
        generated = generate(landscape, decision.points, run.n_points, arms, texts)
        run.n_points += len(decision.points)
        scored = [score(landscape, texts[pair.arm], pair) for pair in decision.evaluations]
        strategy.observe(generated, [])
        while scored:
            count = max(READ_EVERY, int(READ_SHARE * spent))
            arrived, scored = scored[:count], scored[count:]
            strategy.observe([], arrived)
            spent += len(arrived)
            recommended = strategy.recommend()
            if recommended is not None:
                run.calls.append(spent)
                run.recommended = texts[recommended.arm]
                run.truth.append(landscape.true_score(run.recommended))
                if watch is not None:
                    run.watched.append(float(cast(float, strategy.state()[watch])))
        run.seconds += time.perf_counter() - begun


def generate(
    landscape: Playable,
    points: tuple[tuple[float, ...], ...],
    first: int,
    arms: dict[int, int],
    texts: list[int],
) -> list[GeneratedText]:
    """Write the texts of new points, of which `first` is the number of the first one.

    `arms` (arm of each text) and `texts` (text of each arm) are kept up to date.
    """
    if not points:
        return []
    generated = []
    for offset, text in enumerate(landscape.text_of(np.array(points))):
        arm = arms.setdefault(int(text), len(arms))
        if arm == len(texts):
            texts.append(int(text))
        generated.append(GeneratedText(first + offset, arm, f"text {text}"))
    return generated


def score(landscape: Playable, text: int, pair: Evaluation) -> Scored:
    """Answer one example and score it."""
    answer = landscape.answer(text, pair.example)
    return Scored(pair.arm, pair.example, landscape.score(text, pair.example), answer)


def _squared(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(
        (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * a @ b.T, dtype=np.float64
    )


def _standard(values: FloatArray) -> FloatArray:
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float64)


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big")
