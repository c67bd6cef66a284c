"""The `instructzero` command: which commands there are, and how failures are told."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from services.commands import jobs, servers, upkeep
from services.telemetry import configure_logging

DEBUG = "--debug"


class Commands(TyperGroup):
    """Commands whose failures reach nobody as a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take `--debug` wherever it stands."""
        if DEBUG in args:
            args = [DEBUG, *(arg for arg in args if arg != DEBUG)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what it raises becomes a sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except (Exception, KeyboardInterrupt) as error:
            from services.commands.failures import tell

            raise typer.Exit(tell(error, is_debug=bool(ctx.params.get("debug")))) from error


app = typer.Typer(
    cls=Commands,
    name="instructzero",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def start(
    debug: bool = typer.Option(False, DEBUG, envvar="IZ_DEBUG", help="Show tracebacks and logs."),
) -> None:
    """Find the instruction that makes a language model do your task best, within a budget."""
    configure_logging("text", "INFO" if debug else "WARNING")


JOBS, SERVERS, UPKEEP = "Jobs", "Servers", "Installation"
for name, command, panel in (
    ("demo", jobs.demo, JOBS),
    ("run", jobs.run, JOBS),
    ("submit", jobs.submit, JOBS),
    ("watch", jobs.watch, JOBS),
    ("result", jobs.result, JOBS),
    ("list", jobs.list_jobs, JOBS),
    ("usage", jobs.usage, JOBS),
    ("cancel", jobs.cancel, JOBS),
    ("export", jobs.export, JOBS),
    ("report", jobs.report, JOBS),
    ("bench", jobs.bench, JOBS),
    ("paper-tasks", jobs.paper_tasks, JOBS),
    ("serve", servers.serve, SERVERS),
    ("demo-target", servers.demo_target, SERVERS),
    ("generator", servers.generator, SERVERS),
    ("scorer", servers.scorer, SERVERS),
    ("runner", servers.runner, SERVERS),
    ("migrate", servers.migrate, SERVERS),
    ("doctor", upkeep.doctor, UPKEEP),
    ("key", upkeep.key, UPKEEP),
    ("version", upkeep.version, UPKEEP),
):
    app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
