"""What a person is told when a command fails: one sentence, and where to read on."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsError

from instructzero.errors import (
    InstructZeroError,
    InvalidRequest,
    InvalidSpec,
    PayloadTooLarge,
    Unauthorized,
    UnknownTarget,
)
from services.commands.console import Screen
from services.commands.job_files import describe
from services.commands.signals import INTERRUPTED
from services.telemetry import logs_json

log = logging.getLogger(__name__)
BAD_USAGE = 2
FAILED = 1
LOGS = Path("runs")
PREFIXES = {
    "Settings": "IZ_OPTIMIZER_ or IZ_SCORER_",
    "GeneratorSettings": "IZ_GENERATOR_",
    "CommandSettings": "IZ_",
}
"""Where the values of a settings class come from."""


def tell(error: BaseException, *, is_debug: bool) -> int:
    """Tell a person what went wrong and return the exit code."""
    screen = Screen()
    error = _innermost(error)
    if is_debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        screen.say("Interrupted.")
        return INTERRUPTED
    if isinstance(error, InstructZeroError):
        screen.problem(sentence(error))
        is_usage = isinstance(error, InvalidRequest | Unauthorized | PayloadTooLarge)
        return BAD_USAGE if is_usage else FAILED
    if isinstance(error, ValidationError | SettingsError) and (told := setting_problem(error)):
        screen.problem(told)
        return BAD_USAGE
    if isinstance(error, BrokenPipeError):  # `instructzero export ... | head`
        return FAILED
    where = "" if is_debug else f"; {_keep(error)}"
    screen.problem(f"something went wrong on our side ({type(error).__name__}){where}")
    return FAILED


def sentence(error: InstructZeroError) -> str:
    """Return what an error says, with one line per wrong field of a job."""
    if not error.errors:
        return error.detail
    if isinstance(error, InvalidSpec | UnknownTarget):
        return f"the job is not valid:{_lines(error)}"
    return error.detail


def setting_problem(error: ValidationError | SettingsError) -> str | None:
    """Return what is wrong with an environment variable; None if the error is another."""
    if isinstance(error, SettingsError):  # names the field, not the value
        return f"an IZ_ environment variable cannot be read: {error}; lists are written as JSON"
    prefix = PREFIXES.get(error.title)
    if prefix is None:
        return None
    first = error.errors(include_input=False, include_url=False)[0]
    name = "_".join(map(str, first["loc"])).upper() or "*"
    return f"the environment variable {prefix}{name} is not valid: {first['msg']}"


def _lines(error: InstructZeroError) -> str:
    told = describe(error.errors)
    return told if told.startswith("\n") else f"\n  {told}"


def _innermost(error: BaseException) -> BaseException:
    """Return the first failure of a group: the others are its consequences."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _keep(error: BaseException) -> str:
    """Keep a traceback where it can be found, and return where that is."""
    if logs_json():  # a container's files are gone with it
        log.error("something went wrong on our side", exc_info=error)
        return "the log says where"
    return f"the log is in {_write_log(error)}"


def _write_log(error: BaseException) -> Path:
    """Write a traceback and return where it is."""
    text = "".join(traceback.format_exception(error))
    name = f"error-{datetime.now(UTC):%Y%m%d-%H%M%S}.log"
    for folder in (LOGS, Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return Path("standard error, with --debug")
