"""`doctor`: what is there, what answers, what is missing, and the command that brings it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from instructzero.contracts import (
    ExemplarPair,
    GenerateRequest,
    ProjectionSpec,
)
from instructzero.errors import InstructZeroError
from services.commands.connection import DEFAULT_DATABASE
from services.commands.console import Screen, harmless
from services.commands.target_checks import Check, check_targets
from services.demo import model_source
from services.embedded import DEMO, Options
from services.optimizer.database import current_revision, head_revision, sqlite_path

OPTIONAL = {
    "ray": "pip install 'instructzero[cluster]'  (only for generators on a GPU cluster)",
    "vllm": "pip install 'instructzero[vllm]'  (only for generators on GPUs)",
}
STYLE = {"ok": "green", "missing": "red", "optional": "dim"}


@dataclass(frozen=True)
class CheckRequest:
    """What `doctor` was asked to look at."""

    targets: Path | None
    database: str | None
    generator_url: str | None
    model: str
    may_pay: bool

    def options(self) -> Options:
        """Return the options of the process that would run jobs."""
        return Options(
            self.database or DEFAULT_DATABASE,
            targets=self.targets,
            generator_url=self.generator_url,
            model=self.model,
        )


async def examine(request: CheckRequest, screen: Screen) -> int:
    """Look at everything, show it, and return the exit code."""
    checks = [*check_python(), *check_packages()]
    checks.append(await asyncio.to_thread(check_device))
    checks.append(await asyncio.to_thread(check_database, request))
    checks.append(await check_generator(request))
    checks += [check async for check in check_targets(request.options(), may_pay=request.may_pay)]
    screen.table(as_table(checks))
    missing = sum(check.state == "missing" for check in checks)
    if missing:
        screen.say(f"{missing} of {len(checks)} are missing; the last column says how to get them.")
        return 1
    screen.say("All that is needed is there.")
    return 0


def as_table(checks: list[Check]) -> Table:
    """Return the checks, one a row."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for check in checks:
        table.add_row(
            Text(check.state, style=STYLE[check.state]),
            check.name,
            Text(harmless(check.detail)),
            Text(harmless(check.fix)),
        )
    return table


# --- this installation ----------------------------------------------------------------------------


def check_python() -> Iterator[Check]:
    """Look at the interpreter."""
    yield Check("Python", "ok", ".".join(map(str, sys.version_info[:3])))  # older: not installable


def check_packages() -> Iterator[Check]:
    """Look at what is installed."""
    try:
        needed = [
            text.split(";")[0].strip()
            for text in metadata.requires("instructzero") or []
            if "extra ==" not in text
        ]
    except metadata.PackageNotFoundError:
        yield Check("instructzero", "missing", "not installed", "pip install -e .")
        return
    names = [_name_of(text) for text in needed]
    absent = [name for name in names if _version(name) is None]
    if absent:
        yield Check("packages", "missing", f"without {', '.join(absent)}", "pip install -e .")
    else:
        yield Check("packages", "ok", f"all {len(names)} that are needed")
    for name, fix in OPTIONAL.items():
        found = _version(name)
        if found is None:
            yield Check(name, "optional", "not installed", fix)
        else:
            yield Check(name, "ok", found)


def _name_of(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), None)
    return requirement[:end]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_device() -> Check:
    """Look for a GPU."""
    try:
        import torch
    except ImportError as error:
        return Check("CUDA", "missing", f"torch cannot be loaded ({error})", "pip install torch")
    if torch.cuda.is_available():
        return Check("CUDA", "ok", torch.cuda.get_device_name())
    return Check("CUDA", "optional", "no GPU: models run on the CPU", "fine for small models")


# --- what jobs need -------------------------------------------------------------------------------


def check_database(request: CheckRequest) -> Check:
    """Look at the database and its schema."""
    raw = request.database or DEFAULT_DATABASE
    fix = f"instructzero migrate{'' if request.database is None else ' --database …'}"
    try:
        path = sqlite_path(raw)
        if path is not None and not path.exists():
            return _check_folder(path)
        found, head = current_revision(raw), head_revision()
    except InstructZeroError as error:
        return Check("database", "missing", error.detail, "check the URL and that it runs")
    kind = "SQLite" if path is not None else "Postgres"
    if found == head:
        return Check("database", "ok", f"{kind}, schema {found}")
    if path is not None and found is not None:
        return Check("database", "ok", f"{kind}, schema {found}; brought to {head} at the start")
    return Check("database", "missing", f"{kind}, schema {found or 'none'}, needed {head}", fix)


def _check_folder(path: Path) -> Check:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        probe = folder / f".{path.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Check(
            "database", "missing", f"{folder}: {error.strerror}", "give another --database"
        )
    return Check("database", "ok", f"{path} will be made")


async def check_generator(request: CheckRequest) -> Check:
    """Let the generator write one instruction."""
    name = f"generator {request.generator_url or request.model}"
    is_demo = request.model == DEMO and request.generator_url is None
    fix = "install again: pip install -e ." if is_demo else "check --model or --generator-url"
    probe = GenerateRequest(
        request_id="doctor",
        exemplars=(ExemplarPair(input="hot", output="cold"),),
        projection=ProjectionSpec(),
        points=((0.0,) * 10,),
        max_tokens=16,
    )
    try:
        if request.generator_url is not None:
            from services.optimizer.clients import HttpGenerator
            from services.optimizer.settings import Settings

            token = Settings().generator_token
            remote = HttpGenerator(request.generator_url, in_flight=1, token=token)
            try:
                answer = await remote.generate(probe)
            finally:
                await remote.aclose()
        else:
            from services.generator.app import open_writer

            local = await asyncio.to_thread(open_writer, model_source(request.model))
            try:
                answer = await local.generate(probe)
            finally:
                await local.aclose()
    except InstructZeroError as error:
        return Check(name, "missing", error.detail, fix)
    return Check(name, "ok", f"writes: {answer.instructions[0].text[:60]}")
