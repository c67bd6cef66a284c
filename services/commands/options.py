"""Options that several commands share; each is an environment variable too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job, see examples/.")]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="The job's id.")]
Database = Annotated[
    str | None,
    typer.Option(
        envvar=["IZ_DATABASE", "IZ_OPTIMIZER_DATABASE_URL"],
        metavar="URL",
        help="SQLite file or postgresql:// URL.",
        show_default="instructzero.db",
    ),
]
Targets = Annotated[
    Path | None,
    typer.Option(
        envvar=["IZ_TARGETS", "IZ_SCORER_TARGETS"],
        metavar="FILE",
        help="Registered connections; without it, the bundled demo target.",
    ),
]
GeneratorUrl = Annotated[
    str | None,
    typer.Option(
        envvar="IZ_GENERATOR_URL", metavar="URL", help="A generator elsewhere; else in process."
    ),
]
ScorerUrl = Annotated[
    str | None,
    typer.Option(
        envvar="IZ_SCORER_URL", metavar="URL", help="A scorer elsewhere; else in process."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        envvar=["IZ_MODEL", "IZ_GENERATOR_MODEL"],
        metavar="demo|HF_ID|PATH",
        help="The open model that writes instructions.",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="IZ_URL",
        metavar="URL",
        help="A running server; the key, if it wants one, is in IZ_API_KEY.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", envvar="IZ_JSON", help="JSON alone on standard output.")
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--report", envvar="IZ_REPORT", metavar="FILE.html", show_default="runs/JOB_ID.html"
    ),
]
SeriesReport = Annotated[
    Path | None,
    typer.Option(
        "--report", envvar="IZ_REPORT", metavar="FILE.html", show_default="in the folder runs"
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", envvar="IZ_YES", help="Agree to a cost above one US dollar.")
]
Host = Annotated[str, typer.Option(envvar="IZ_HOST", help="Address to listen on.")]
