"""A page of many jobs: one picture, one table, notes and settings, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from services.report.frame import content_policy, open_template, page_script, page_style


@dataclass(frozen=True)
class TablePage:
    """What such a page holds; every text is shown as text, `picture` is SVG of ours.

    Attributes:
        numbers: columns that stand to the right.
        texts: columns whose cells may be long.
    """

    title: str
    lead: str
    columns: Sequence[str]
    numbers: frozenset[str]
    texts: frozenset[str]
    rows: Sequence[Sequence[str]]
    picture: str | None
    caption: str
    notes: Sequence[str]
    settings: Mapping[str, str]


def render_table_page(page: TablePage) -> str:
    """Return the page as one HTML document that needs nothing else."""
    script = page_script()
    return open_template("tables.html.jinja").render(
        page=page,
        rows=[list(zip(page.columns, row, strict=True)) for row in page.rows],
        policy=content_policy(script),
        style=Markup(page_style()),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
        picture=None if page.picture is None else Markup(page.picture),  # noqa: S704 - escaped
    )
