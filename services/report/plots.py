"""The pictures of scores: the leader over the search, every instruction, how scores are spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from instructzero.contracts import Measured, TrialView
from services.report.drawing import (
    LINE,
    MUTED,
    PAGE,
    REFERENCE,
    STYLE,
    WINNER,
    as_svg,
    legend_below,
    new_figure,
)

MOST_ROWS = 40
LEAST_EXAMPLES = 10
"""A baseline that was tried on fewer is no line to compare with."""


@dataclass(frozen=True)
class LeaderPoint:
    """The leader after one step."""

    calls: int
    score: float
    low: float
    high: float
    is_new: bool


@dataclass(frozen=True)
class References:
    """What the search is compared with: scores of the baseline, held-out scores of both."""

    baseline_validation: Measured | None = None
    winner_test: Measured | None = None
    baseline_test: Measured | None = None
    calls: int = 0


def best_so_far(points: Sequence[LeaderPoint], references: References) -> str:
    """Return the leader's score with its interval against calls to the target."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=3.5)
        last = points[-1]
        if references.calls > last.calls:  # the last leader led until the end
            points = [*points, replace(last, calls=references.calls, is_new=False)]
        calls = [point.calls for point in points]
        axes.fill_between(
            calls,
            [point.low for point in points],
            [point.high for point in points],
            step="post",
            color=WINNER,
            alpha=0.18,
            linewidth=0,
            label="90 % interval",
        )
        axes.step(
            calls,
            [point.score for point in points],
            where="post",
            color=WINNER,
            linewidth=2,
            label="leader, validation examples",
        )
        new = [point for point in points if point.is_new]
        axes.plot(
            [point.calls for point in new],
            [point.score for point in new],
            "o",
            color=WINNER,
            markersize=5,
            label="a new leader",
        )
        _draw_references(axes, references)
        axes.set_xlabel("calls to the target")
        axes.set_ylabel("score (0 to 1)")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(left=0)
        axes.margins(x=0.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        legend_below(figure, axes, columns=2)
        return as_svg(
            figure,
            "leader",
            f"Line chart. The leader's validation score rises from {points[0].score:.2f} to "
            f"{last.score:.2f} over {last.calls} calls.",
        )


def _draw_references(axes: Any, references: References) -> None:
    level = references.baseline_test or references.baseline_validation
    if level is not None and level.n >= LEAST_EXAMPLES:
        axes.axhline(
            level.score,
            color=REFERENCE,
            linestyle=(0, (5, 3)),
            linewidth=1.5,
            label=None if references.baseline_test else "baseline, validation examples",
        )
    marks = [
        (references.winner_test, WINNER, "D", "winner, fresh examples", 0.0),
        (references.baseline_test, REFERENCE, "s", "baseline, fresh examples", 0.012),
    ]
    for found, color, shape, label, shift in marks:
        if found is None:
            continue
        below, above = found.score - found.interval[0], found.interval[1] - found.score
        axes.errorbar(
            [references.calls * (1 + shift)],
            [found.score],
            yerr=[[max(below, 0)], [max(above, 0)]],
            fmt=shape,
            color=color,
            markersize=6,
            capsize=4,
            linewidth=1.6,
            label=label,
        )


def forest(trials: Sequence[TrialView], winner: str | None) -> str:
    """Return every instruction's score with its interval, best on top."""
    rows = list(reversed(trials[:MOST_ROWS]))
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=1.1 + 0.19 * max(len(rows), 4))
        for height, trial in enumerate(rows):
            color, shape = _mark(trial, winner)
            is_complete = trial.status == "completed"
            axes.plot(trial.interval, (height, height), "-", color=color, linewidth=1.6, alpha=0.75)
            axes.plot(
                [trial.score],
                [height],
                shape,
                color=color,
                markersize=6,
                markerfacecolor=color if is_complete else PAGE,
            )
        axes.set_yticks(range(len(rows)), [_row_name(trial) for trial in rows])
        axes.tick_params(axis="y", length=0, labelsize=8.5)
        axes.set_ylim(-0.8, len(rows) - 0.2)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("score on validation examples (0 to 1), 90 % interval")
        axes.set_ylabel("trial")
        axes.grid(axis="y", visible=False)
        for color, shape, label, fill in (
            (WINNER, "D", "winner", WINNER),
            (REFERENCE, "s", "baseline", REFERENCE),
            (MUTED, "o", "all validation examples", MUTED),
            (MUTED, "o", "stopped early", PAGE),
        ):
            axes.plot([], [], shape, color=color, markerfacecolor=fill, label=label)
        legend_below(figure, axes, columns=4)
        return as_svg(
            figure,
            "forest",
            f"Forest plot of {len(rows)} instructions, sorted by score; "
            "the table below holds the same numbers.",
        )


def _mark(trial: TrialView, winner: str | None) -> tuple[str, str]:
    if trial.instruction == winner:
        return WINNER, "D"
    return (REFERENCE, "s") if trial.source == "baseline" else (MUTED, "o")


def _row_name(trial: TrialView) -> str:
    return f"baseline, {trial.trial}" if trial.source == "baseline" else str(trial.trial)


def distribution(trials: Sequence[TrialView], winner: float | None, baseline: float | None) -> str:
    """Return how many instructions got which score."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=2.6)
        edges = [bin_ / 20 for bin_ in range(21)]
        groups = [
            [trial.score for trial in trials if trial.status == status]
            for status in ("completed", "partial")
        ]
        axes.hist(
            groups,
            bins=edges,
            stacked=True,
            color=[MUTED, LINE],
            edgecolor=PAGE,
            linewidth=0.8,
            label=["all validation examples", "stopped early"],
        )
        for value, color, style, label in (
            (baseline, REFERENCE, (0, (5, 3)), "baseline"),
            (winner, WINNER, "-", "winner"),
        ):
            if value is not None:
                axes.axvline(value, color=color, linestyle=style, linewidth=2, label=label)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("score on validation examples (0 to 1)")
        axes.set_ylabel("instructions")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(axis="x", visible=False)
        legend_below(figure, axes, columns=4)
        return as_svg(
            figure,
            "scores",
            f"Histogram of the scores of {len(trials)} instructions, from "
            f"{min(trial.score for trial in trials):.2f} to "
            f"{max(trial.score for trial in trials):.2f}.",
        )
