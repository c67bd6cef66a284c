"""How much could a better search still gain? Beside `default`, two players that know the truth.

    python -m benchmarks.oracle --smoke     # writes nothing
    python -m benchmarks.oracle

- `right family`: `default` on a landscape of which only the right family is left: what it takes to
  tell its wordings apart, and nothing else.
- `true model`: knows which texts are one family and the distribution the landscape was drawn from,
  and has its exact posterior by Gibbs sampling (z_ij = l_i - d_j + f_Fj + noise, answer right where
  z_ij > 0, families' levels as `landscapes` draws them). It buys by `default`'s knowledge gradient
  over a pool as large as `default`'s, and stays with a leader as `default` does.

Neither is a bound that can be proved: another way to buy might need fewer calls. `true model` says
what a better *model* of the answers can bring, `right family` what a better way to *find* can. Hard
landscapes are left out: there the pool alone seldom holds the right family.

Development seeds that no strategy was tuned on; calls until 95 % of the best and staying there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import ndtr, ndtri

from benchmarks.calls_to_target import OPTIONS, SHARE, censored, paired_ratio
from benchmarks.landscapes import (
    DIFFICULTY_SD,
    FAMILY_LUCK_SD,
    SPECS,
    TOTAL_SD,
    WORDING_LUCK_SD,
    WORDING_SD,
    Landscape,
    LandscapeSpec,
    Run,
    play,
)
from benchmarks.record import record
from services.optimizer.search.race import BETTER_BY
from services.optimizer.search.racing import condition, knowledge_gradient
from services.optimizer.search.seeds import sobol_points
from services.optimizer.search.strategy import FloatArray

FIRST_SEED = 5000
KINDS = ("easy", "medium")
PLAYERS = ("default", "right family", "true model", "random")
CHECKPOINTS = (100, 200, 500)
POOL = 800
ROUND, NEXT_EXAMPLES = 10, 3
SWEEPS, BURN_IN = 300, 40
WORDING_VARIANCE = (WORDING_SD * TOTAL_SD) ** 2
CEILING = TOTAL_SD * float(ndtri(0.95))
LEVELS = ((0.01, 0.25, 0.6), (0.25, 0.60, 0.3), (0.60, 0.78, 0.1))
"""From, to and share of the scores of families that are not the right one."""


class Cell(NamedTuple):
    """One run of a player."""

    kind: str
    player: str
    seed: int
    calls: int


class RightFamily(Landscape):
    """A landscape of which only family 0, the right one, is left."""

    def __init__(self, spec: LandscapeSpec, seed: int) -> None:
        super().__init__(spec, seed)
        self._centres, self._weights = self._centres[:1], self._weights[:1]


class TrueModel:
    """Posterior of the true scores under the distribution the landscape was drawn from."""

    def __init__(self, family: NDArray[np.intp], n_examples: int, rng: np.random.Generator) -> None:
        """Begin with no answers.

        Args:
            family: n_texts, number of the family of each text, from 0 without gaps.
            n_examples: m.
            rng: for the sampler.
        """
        self._family, self._rng = family, rng
        n_families = int(family.max()) + 1
        grids = [np.linspace(low, high, 12) for low, high, _ in LEVELS]
        share = [np.full(12, part / 12) * (1.0 - 1.0 / n_families) for *_, part in LEVELS]
        self._levels = TOTAL_SD * ndtri(np.concatenate([*grids, [0.88]]))
        self._prior = np.concatenate([*share, [1.0 / n_families]])
        self._text = np.full(len(family), float(TOTAL_SD * ndtri(0.3)))
        self._difficulty = np.zeros(n_examples)
        self._luck = np.zeros((n_families, n_examples))

    def prior(self, count: int) -> FloatArray:
        """Return true scores drawn without any answers: count x n_texts."""
        shape = (count, self._luck.shape[0])
        level = self._rng.choice(self._levels, size=shape, p=self._prior)[:, self._family]
        noise = self._rng.normal(0.0, np.sqrt(WORDING_VARIANCE), level.shape)
        return np.asarray(ndtr(np.minimum(level + noise, CEILING) / TOTAL_SD), dtype=np.float64)

    def sample(self, bought: NDArray[np.bool_], scores: FloatArray) -> FloatArray:
        """Return true scores drawn given the answers: draws x n_texts."""
        rng, s2 = self._rng, WORDING_LUCK_SD**2
        texts, examples = np.nonzero(bought)
        is_right = scores[texts, examples] > 0.5
        (n_families, m), n = self._luck.shape, len(self._family)
        cell = self._family[texts] * m + examples
        per_text, per_example = bought.sum(axis=1), bought.sum(axis=0)
        per_cell = np.bincount(cell, minlength=n_families * m)
        drawn = []
        for sweep in range(SWEEPS):
            mean = self._text[texts] - self._difficulty[examples] + self._luck.flat[cell]
            below = ndtr(-mean / WORDING_LUCK_SD)
            u = rng.uniform(size=len(texts))
            u = np.where(is_right, below + u * (1.0 - below), u * below)
            z = mean + WORDING_LUCK_SD * ndtri(np.clip(u, 1e-12, 1.0 - 1e-12))

            rest = np.bincount(examples, self._text[texts] + self._luck.flat[cell] - z, minlength=m)
            precision = 1.0 / DIFFICULTY_SD**2 + per_example / s2
            self._difficulty = rest / s2 / precision + rng.normal(size=m) / np.sqrt(precision)

            easier = z + self._difficulty[examples]
            rest = np.bincount(cell, easier - self._text[texts], minlength=n_families * m)
            precision = 1.0 / FAMILY_LUCK_SD**2 + per_cell / s2
            luck = rest / s2 / precision + rng.normal(size=len(rest)) / np.sqrt(precision)
            self._luck = luck.reshape(n_families, m)

            total = np.bincount(texts, easier - self._luck.flat[cell], minlength=n)
            level = self._draw_levels(total, per_text)[self._family]
            precision = 1.0 / WORDING_VARIANCE + per_text / s2
            self._text = (level / WORDING_VARIANCE + total / s2) / precision
            self._text += rng.normal(size=n) / np.sqrt(precision)
            self._text = np.minimum(self._text, CEILING)
            if sweep >= BURN_IN:
                drawn.append(self._text)
        return np.asarray(ndtr(np.array(drawn) / TOTAL_SD), dtype=np.float64)

    def _draw_levels(self, total: FloatArray, per_text: NDArray[np.intp]) -> FloatArray:
        """Draw each family's level, its texts integrated out."""
        tried = np.flatnonzero(per_text)
        mean = total[tried] / per_text[tried]
        variance = WORDING_VARIANCE + WORDING_LUCK_SD**2 / per_text[tried]
        fit = np.tile(np.log(self._prior), (self._luck.shape[0], 1))
        apart = mean[:, None] - self._levels[None, :]
        np.add.at(fit, self._family[tried], -0.5 * apart**2 / variance[:, None])
        chance = np.exp(fit - fit.max(axis=1, keepdims=True)).cumsum(axis=1)
        u = self._rng.uniform(size=(len(chance), 1)) * chance[:, -1:]
        return np.asarray(self._levels[(u > chance).sum(axis=1)], dtype=np.float64)


def play_true_model(landscape: Landscape, calls: int, seed: int) -> Run:
    """Play the player that knows the distribution, read after every ten calls."""
    rng = np.random.default_rng(seed)
    pool = np.unique(landscape.text_of(sobol_points(seed, landscape.dim, 0, POOL)))
    family = np.unique(pool // landscape.spec.n_wordings, return_inverse=True)[1]
    scores, truth = landscape.scores[pool], landscape.truth[pool]
    bought = np.zeros(scores.shape, dtype=bool)
    order = rng.permutation(scores.shape[1])
    model = TrueModel(family, scores.shape[1], rng)
    drawn, leader = model.prior(SWEEPS), -1
    run = Run(best=landscape.best)
    for spent in range(ROUND, min(calls, bought.size) + 1, ROUND):
        buy(bought, drawn, order, rng)
        drawn = model.sample(bought, scores)
        mean = np.where(bought.any(axis=1), drawn.mean(axis=0), -1.0)
        if leader < 0 or mean.max() - mean[leader] > BETTER_BY:
            leader = int(mean.argmax())
        run.calls.append(spent)
        run.truth.append(float(truth[leader]))
    return run


def buy(
    bought: NDArray[np.bool_],
    drawn: FloatArray,
    order: NDArray[np.intp],
    rng: np.random.Generator,
) -> None:
    """Mark the next ten answers as bought, by knowledge gradient; the first ones at random."""
    mean, covariance = drawn.mean(axis=0), np.cov(drawn.T) + 1e-7 * np.eye(drawn.shape[1])
    noise = np.clip(mean * (1.0 - mean), 0.06, 0.25)
    known = bought.any(axis=1)
    left = ROUND
    while left:
        counts = bought.sum(axis=1)
        value = (
            knowledge_gradient(mean, covariance, noise, known, counts)
            if known.any()
            else np.where(counts, 0.0, rng.uniform(size=len(mean)))
        )
        pick = int(np.where(counts < len(order), value, -1.0).argmax())
        size = min(NEXT_EXAMPLES if counts[pick] else 1, left)
        examples = [example for example in order if not bought[pick, example]][:size]
        bought[pick, examples] = True
        left -= len(examples)
        covariance = condition(covariance, pick, float(noise[pick] / len(examples)))


def run_cell(cell: Cell) -> Run:
    """Play one run."""
    spec = SPECS[cell.kind]
    if cell.player == "right family":
        return play("default", RightFamily(spec, cell.seed), cell.calls, cell.seed)
    landscape = Landscape(spec, cell.seed)
    if cell.player == "true model":
        return play_true_model(landscape, cell.calls, cell.seed)
    return play(cell.player, landscape, cell.calls, cell.seed, OPTIONS[cell.player])


def summarise(runs: Sequence[Run], default: Sequence[Run]) -> dict[str, Any]:
    """Return one row: calls, share of the best, and the ratio of the calls to `default`'s."""
    mine, theirs = (
        [censored(run.sustained(SHARE), run) for run in part] for part in (runs, default)
    )
    return {
        "runs": len(runs),
        "sustained": mine,
        "sustained_median": float(np.median(mine)),
        "sustained_mean": float(np.exp(np.mean(np.log(mine)))),
        "score_at": {
            str(calls): float(np.mean([run.at(calls) / run.best for run in runs]))
            for calls in CHECKPOINTS
        },
        "of_default": vars(paired_ratio(mine, theirs)),
    }


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="tiny, writes nothing")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=1200)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.smoke:
        options.seeds, options.calls = 2, 60
    cells = [
        Cell(kind, player, FIRST_SEED + seed, options.calls)
        for kind in KINDS
        for player in PLAYERS
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.workers) as pool:
        console = Console(width=120)
        runs = track(pool.map(run_cell, cells), "runs", len(cells), console=console)
        played = dict(zip(cells, runs, strict=True))
    table = Table(title="calls until 95 % of the best and staying there")
    for heading in ("landscape", "player", "median", "geometric mean", "of default's"):
        table.add_column(heading)
    for calls in CHECKPOINTS:
        table.add_column(f"@{calls}", justify="right")
    rows = {}
    for kind in KINDS:
        by_player = {
            player: [run for cell, run in played.items() if cell[:2] == (kind, player)]
            for player in PLAYERS
        }
        for player, runs_of in by_player.items():
            row = rows[f"{kind}/{player}"] = summarise(runs_of, by_player["default"])
            ratio = row["of_default"]
            table.add_row(
                kind,
                player,
                f"{row['sustained_median']:.0f}",
                f"{row['sustained_mean']:.0f}",
                f"{ratio['mean']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
                *(f"{row['score_at'][str(calls)]:.3f}" for calls in CHECKPOINTS),
            )
    console.print(table)
    if not options.smoke:
        seeds = {"kind": "development", "first": FIRST_SEED}
        path = record("oracle", {"calls": options.calls, "seeds": seeds, "rows": rows})
        console.print(f"written: benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
