"""The pictures of many jobs: strategies against calls, and tasks beside the paper's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from instructzero.contracts import Measured
from services.report.drawing import (
    FOURTH,
    INK,
    MUTED,
    REFERENCE,
    STYLE,
    THIRD,
    WIDTH_INCHES,
    WINNER,
    as_svg,
    legend_below,
    new_figure,
)
from services.report.plots import LeaderPoint

LOOKS: Sequence[tuple[str, Any, str]] = (
    (WINNER, "-", "D"),
    (REFERENCE, (0, (5, 2)), "s"),
    (THIRD, (0, (1.2, 1.2)), "o"),
    (FOURTH, (0, (5, 1.5, 1, 1.5)), "^"),
)
"""Colour, dashes and mark of each strategy, in the order they are given."""


@dataclass(frozen=True)
class Curve:
    """One job: its leader over the search, and its winner on fresh examples."""

    name: str
    points: tuple[LeaderPoint, ...]
    held_out: Measured | None
    calls: int


@dataclass(frozen=True)
class PaperPoint:
    """One task: what was measured here, and the scores to set it beside."""

    task: str
    ours: Measured | None
    instructzero: float | None
    ape: float | None


def best_by_strategy(curves: Sequence[Curve]) -> str:
    """Return the leaders' scores against calls, and at the side the winners on fresh examples."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
        figure.patch.set_visible(False)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        for axes in (left, right):
            axes.patch.set_visible(False)
        for place, name in enumerate(names):
            same = [curve for curve in curves if curve.name == name]
            look = LOOKS[place % len(LOOKS)]
            _draw_leaders(left, name, same, look)
            _draw_held_out(right, place, same, look)
        left.set_xlabel("calls that the budget counts")
        left.set_ylabel("score (0 to 1)")
        left.set_title("leader on validation examples", fontsize=10)
        left.set_xlim(left=0)
        left.set_ylim(-0.03, 1.03)
        left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        right.set_title("winner on fresh ones", fontsize=10)
        right.set_xticks([])
        right.set_xlim(-0.6, len(names) - 0.4)
        legend_below(figure, left, columns=4)
        return as_svg(figure, "strategies", _say_strategies(names, curves))


def _draw_leaders(
    axes: Any, name: str, curves: Sequence[Curve], look: tuple[str, Any, str]
) -> None:
    color, dashes, mark = look
    for number, curve in enumerate(found for found in curves if found.points):
        last = curve.points[-1]
        axes.step(
            [*(point.calls for point in curve.points), max(curve.calls, last.calls)],
            [*(point.score for point in curve.points), last.score],
            where="post",
            color=color,
            linestyle=dashes,
            marker=mark,
            markevery=[-1],
            markersize=6,
            linewidth=2 if len(curves) == 1 else 1.3,
            alpha=1.0 if len(curves) == 1 else 0.7,
            label=name if number == 0 else None,
        )


def _draw_held_out(
    axes: Any, place: int, curves: Sequence[Curve], look: tuple[str, Any, str]
) -> None:
    color, _, mark = look
    measured = [curve.held_out for curve in curves if curve.held_out is not None]
    for number, found in enumerate(measured):
        shift = 0.0 if len(measured) == 1 else 0.5 * (number / (len(measured) - 1) - 0.5)
        axes.errorbar(
            [place + shift],
            [found.score],
            yerr=_around(found),
            fmt=mark,
            color=color,
            markersize=6,
            capsize=3,
            linewidth=1.5,
        )


def _around(found: Measured) -> list[list[float]]:
    low, high = found.interval
    return [[max(found.score - low, 0.0)], [max(high - found.score, 0.0)]]


def _say_strategies(names: Sequence[str], curves: Sequence[Curve]) -> str:
    parts = []
    for name in names:
        scores = [c.held_out.score for c in curves if c.name == name and c.held_out is not None]
        mean = f"{sum(scores) / len(scores):.2f}" if scores else "not measured"
        parts.append(f"{name} {mean}")
    return (
        "Line chart of the leader's score against calls, one line a job, and beside it the "
        f"winners on fresh examples: {', '.join(parts)}."
    )


def beside_the_paper(points: Sequence[PaperPoint]) -> str | None:
    """Return our held-out score of each task beside the paper's; None where there is none."""
    shown = list(reversed(points))
    if not any(point.ours for point in shown):
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=1.2 + 0.24 * max(len(shown), 4))
        for height, point in enumerate(shown):
            if point.ours is not None:
                axes.plot(point.ours.interval, (height, height), "-", color=WINNER, linewidth=2)
                axes.plot([point.ours.score], [height], "o", color=WINNER, markersize=6)
            for value, mark, color in (
                (point.instructzero, "D", REFERENCE),
                (point.ape, "x", MUTED),
            ):
                if value is not None:
                    axes.plot(
                        [value], [height], mark, color=color, markersize=6, markerfacecolor="none"
                    )
        for mark, color, fill, label in (
            ("o", WINNER, WINNER, "measured here, 90 % interval"),
            ("D", REFERENCE, "none", "paper: InstructZero"),
            ("x", MUTED, "none", "paper: APE"),
        ):
            axes.plot([], [], mark, color=color, markerfacecolor=fill, label=label)
        axes.set_yticks(range(len(shown)), [point.task for point in shown], parse_math=False)
        axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("held-out score (0 to 1)")
        axes.grid(axis="y", visible=False)
        legend_below(figure, axes, columns=3)
        n = sum(point.ours is not None for point in shown)
        return as_svg(
            figure,
            "paper",
            f"Dot plot of the held-out scores of {n} tasks beside the paper's; "
            "the table below holds the same numbers.",
        )
