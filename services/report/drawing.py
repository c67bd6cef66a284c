"""How the report's pictures are drawn: inline SVG in the page's colours that holds no user text.

Colours are drawn as placeholders and replaced by the page's CSS variables, so that one picture
serves light, dark and print. Every kind of colour vision tells them apart; marks differ in shape,
and lines in their dashes, as well.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

from matplotlib.figure import Figure

PLACEHOLDERS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--winner)",
    "#050505": "var(--reference)",
    "#060606": "var(--page)",
    "#070707": "var(--third)",
    "#080808": "var(--fourth)",
}
INK, MUTED, LINE, WINNER, REFERENCE, PAGE, THIRD, FOURTH = PLACEHOLDERS
WIDTH_INCHES = 6.6
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "instructzero",
    "font.size": 10.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def new_figure(*, height: float) -> tuple[Figure, Any]:
    """Return a figure of the page's width with one pair of axes."""
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def legend_below(figure: Figure, axes: Any, *, columns: int) -> None:
    """Explain the marks below the axes, where they hide none."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=1.8)


def as_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an element for the page: own ids, page colours, no foreign address."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    body = text[text.index("<g id=") : text.rindex("</svg>")]
    view = re.search(r'viewBox="([^"]+)"', text)
    body = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;\"]+", "font-family: inherit", body)
    for placeholder, variable in PLACEHOLDERS.items():
        body = body.replace(placeholder, variable)
    return (
        f'<svg role="img" aria-label="{html.escape(description)}" '
        f'viewBox="{view.group(1) if view else "0 0 475 250"}">'
        f"<title>{html.escape(description)}</title>{body}</svg>"
    )
