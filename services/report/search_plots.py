"""The pictures of the search: where its calls went, what it expected, what it hoped for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from instructzero.contracts import Surrogate, TrialView
from services.report.drawing import (
    INK,
    MUTED,
    REFERENCE,
    STYLE,
    WINNER,
    as_svg,
    legend_below,
    new_figure,
)

MOST_BARS = 200
MOST_EXPECTED = 150
N_SHADES = 6
LEAST_POINTS = 3
"""Fewer points make no picture."""
NINETY = 1.645
"""Half a 90 % interval of a normal distribution, in standard deviations."""
WIDE = 30.0
"""Values whose largest is that many times the smallest need a logarithmic axis."""


class Expected(NamedTuple):
    """A proposed point: what the surrogate expected of it, and what its text then scored."""

    trial: int
    mean: float
    sd: float
    score: float
    interval: tuple[float, float]


def expected_points(trials: Sequence[TrialView]) -> list[Expected]:
    """Return the trials that the surrogate proposed, in the order they were tried."""
    return [
        Expected(trial.trial, trial.gp_mean, trial.gp_sd, trial.score, trial.interval)
        for trial in sorted(trials, key=lambda trial: trial.trial)
        if trial.gp_mean is not None and trial.gp_sd is not None
    ]


def allocation(ranked: Sequence[TrialView], winner: str | None) -> str | None:
    """Return on how many examples each instruction was tried, the best on the left.

    Args:
        ranked: every instruction, best score first.
        winner: the text that was chosen.
    """
    if len(ranked) < LEAST_POINTS:
        return None
    shown = ranked[:MOST_BARS]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=2.6)
        for label, color, hatch in (
            ("winner", WINNER, "///"),
            ("baseline", REFERENCE, "..."),
            ("other instructions", MUTED, None),
        ):
            bars = [
                (rank, trial.n_examples)
                for rank, trial in enumerate(shown, start=1)
                if _role(trial, winner) == label
            ]
            if bars:
                axes.bar(
                    [rank for rank, _ in bars],
                    [height for _, height in bars],
                    width=0.8 if len(shown) <= MOST_BARS / 2 else 1.0,
                    color=color,
                    hatch=hatch,
                    edgecolor="none" if hatch is None else INK,
                    linewidth=0,
                    label=label,
                )
        axes.set_xlabel("instructions, by score (1 is the best)")
        axes.set_ylabel("examples tried on")
        axes.set_xlim(0.4, len(shown) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(axis="x", visible=False)
        legend_below(figure, axes, columns=3)
        total = sum(trial.n_examples for trial in ranked)
        half = _share_of_best(ranked, total)
        return as_svg(
            figure,
            "allocation",
            f"Bar chart of the examples that each of {len(shown)} instructions was tried on, best "
            f"score first. The better half of the instructions took {half:.0%} of {total} answers.",
        )


def _role(trial: TrialView, winner: str | None) -> str:
    if trial.instruction == winner:
        return "winner"
    return "baseline" if trial.source == "baseline" else "other instructions"


def _share_of_best(ranked: Sequence[TrialView], total: int) -> float:
    best = ranked[: (len(ranked) + 1) // 2]
    return sum(trial.n_examples for trial in best) / max(total, 1)


def expectation(points: Sequence[Expected]) -> str | None:
    """Return what the surrogate expected of each point it chose, and what was then measured."""
    if len(points) < LEAST_POINTS:
        return None
    shown = points[-MOST_EXPECTED:]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=3.0)
        places = range(1, len(shown) + 1)
        size = 5.0 if len(shown) <= 60 else 3.0
        axes.vlines(
            list(places),
            [max(point.mean - NINETY * point.sd, 0.0) for point in shown],
            [min(point.mean + NINETY * point.sd, 1.0) for point in shown],
            color=REFERENCE,
            alpha=0.3,
            linewidth=min(8.0, 240 / len(shown)),
            label="expected, 90 % interval",
        )
        axes.plot(
            places,
            [min(max(point.mean, 0.0), 1.0) for point in shown],
            "_",
            color=REFERENCE,
            markersize=size + 3,
            markeredgewidth=1.8,
            label="expected score",
        )
        axes.plot(
            places,
            [point.score for point in shown],
            "o",
            color=WINNER,
            markersize=size,
            label="measured score",
        )
        axes.set_xlabel("points that the surrogate chose, in the order they were tried")
        axes.set_ylabel("score (0 to 1)")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(0.4, len(shown) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.grid(axis="x", visible=False)
        legend_below(figure, axes, columns=3)
        error = sum(abs(point.mean - point.score) for point in shown) / len(shown)
        return as_svg(
            figure,
            "expectation",
            f"Expected and measured scores of {len(shown)} points that the surrogate chose. On "
            f"average they lie {error:.2f} apart.",
        )


def acquisition(trials: Sequence[TrialView]) -> str | None:
    """Return the acquisition value of the proposed points against the step they were tried in."""
    points = sorted((t.step, t.acquisition) for t in trials if t.acquisition is not None)
    if len(points) < LEAST_POINTS or points[0][0] == points[-1][0]:
        return None
    steps, values = [step for step, _ in points], [value for _, value in points]
    is_gain = min(values) > 0  # expected improvement; below zero it is a logarithm already
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=2.6)
        axes.plot(steps, values, "o", color=MUTED, markersize=4, label="a point")
        best: dict[int, float] = {}
        for step, value in points:
            best[step] = max(value, best.get(step, value))
        axes.plot(
            list(best), list(best.values()), "-", color=WINNER, linewidth=2, label="best of a step"
        )
        if is_gain and max(values) > WIDE * min(values):
            axes.set_yscale("log")
        axes.set_xlabel("step in which the point's text was first tried")
        axes.set_ylabel("expected improvement" if is_gain else "log expected improvement")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        legend_below(figure, axes, columns=2)
        falls = sum(later < earlier for earlier, later in pairwise(best.values()))
        return as_svg(
            figure,
            "acquisition",
            f"Acquisition values of {len(points)} proposed points over {len(best)} steps; the best "
            f"value falls from a step to the next {falls} times of {max(len(best) - 1, 0)}.",
        )


def posterior(surrogate: Surrogate | None) -> str | None:
    """Return what the surrogate believed of the leading instructions when the search ended."""
    if surrogate is None or len(surrogate.leaders) < LEAST_POINTS:
        return None
    leaders = surrogate.leaders
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=2.8)
        places = range(1, len(leaders) + 1)
        axes.errorbar(
            places,
            [belief.mean for belief in leaders],
            yerr=[NINETY * belief.sd for belief in leaders],
            fmt="o",
            color=REFERENCE,
            markersize=5,
            elinewidth=1.5,
            capsize=3,
            label="posterior mean, 90 % interval of the model",
        )
        axes.set_xlabel("leading instructions, by posterior mean")
        axes.set_ylabel("score (0 to 1)")
        axes.set_xlim(0.4, len(leaders) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.grid(axis="x", visible=False)
        legend_below(figure, axes, columns=1)
        first, last = leaders[0], leaders[-1]
        return as_svg(
            figure,
            "posterior",
            f"Posterior of the {len(leaders)} leading instructions, from {first.mean:.2f} "
            f"(standard deviation {first.sd:.2f}) down to {last.mean:.2f} ({last.sd:.2f}).",
        )


def improvement_over_box(surrogate: Surrogate | None) -> str | None:
    """Return the expected improvement on a plane of the search box through the leader."""
    if surrogate is None or surrogate.slice is None:
        return None
    plane = surrogate.slice
    values = [value for row in plane.value for value in row]
    least, most = min(values), max(values)
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=3.4)
        if most > least:
            steps = [least + (most - least) * part / N_SHADES for part in range(N_SHADES)]
            for step in steps:
                axes.contourf(
                    plane.grid,
                    plane.grid,
                    plane.value,
                    [step, 2 * most],
                    colors=[WINNER],
                    alpha=0.14,
                )
        axes.plot(
            *plane.leader, "*", color=INK, markersize=12, linestyle="none", label="the leader"
        )
        axes.set_xlabel(f"coordinate {plane.axes[0] + 1} of z")
        axes.set_ylabel(f"coordinate {plane.axes[1] + 1} of z")
        axes.set_aspect("equal")
        axes.set_xlim(-1.0, 1.0)
        axes.set_ylim(-1.0, 1.0)
        axes.grid(visible=False)
        legend_below(figure, axes, columns=1)
        return as_svg(
            figure,
            "box",
            "Expected improvement on a plane of the search box through the leader, from "
            f"{least:.2g} to {most:.2g}; darker is more.",
        )
