"""Commands about the installation: keys, checks, version."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

from services.commands import options as opt

DEMO = "demo"


def key() -> None:
    """Make an API key: shown once, with the hash that the server is given."""
    from services.commands.console import Screen
    from services.optimizer.auth import new_key

    made, screen = new_key(), Screen()
    screen.write(f"key:  {made.key}")
    screen.write(f"hash: {made.digest}")
    screen.say("The key is shown once: keep it where secrets are kept. Callers send it as")
    screen.say("  Authorization: Bearer KEY     (this command line: IZ_API_KEY=KEY)")
    screen.say("The server is given the hash alone:")
    screen.say(f"  IZ_OPTIMIZER_API_KEY_HASHES='{json.dumps([made.digest])}'")


def doctor(
    targets: opt.Targets = None,
    database: opt.Database = None,
    generator_url: opt.GeneratorUrl = None,
    model: opt.Model = DEMO,
    paid_check: Annotated[
        bool,
        typer.Option(
            envvar="IZ_PAID_CHECK", help="Also ask each target one question: costs money."
        ),
    ] = False,
) -> None:
    """Say what is installed, what answers, what is missing and how to get it.

    Exit code: 0 all that is needed is there, 1 something is missing.
    """
    from services.commands.console import Screen
    from services.commands.doctor import CheckRequest, examine

    request = CheckRequest(
        targets=targets,
        database=database,
        generator_url=generator_url,
        model=model,
        may_pay=paid_check,
    )
    raise typer.Exit(asyncio.run(examine(request, Screen())))


def version() -> None:
    """Print the version."""
    from services.commands.console import Screen
    from services.web import product_version

    Screen().write(product_version())
