"""Commands that serve until a signal: everything in one process, or one part of a cluster."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands import options as opt

if TYPE_CHECKING:
    from services.commands.console import Screen

LOCAL = "127.0.0.1"
DEMO = "demo"


class LogStyle(StrEnum):
    """How a server logs."""

    TEXT = "text"
    JSON = "json"


class EngineName(StrEnum):
    """What runs the open model."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


Log = Annotated[
    LogStyle, typer.Option("--log-style", envvar="IZ_LOG_STYLE", help="Lines or JSON objects.")
]


def _screen(style: LogStyle) -> Screen:
    """Begin to log, and return where else a server says something: in JSON, nowhere else."""
    from services.commands.console import LogScreen, Screen
    from services.telemetry import configure_logging

    configure_logging(style.value)
    return LogScreen() if style is LogStyle.JSON else Screen()


def _database(given: str | None) -> str:
    """Return the database of an option, a variable or a secret file, or the file of this folder."""
    from services.optimizer.settings import Settings

    return given or Settings().database_url.get_secret_value()


def serve(
    host: opt.Host = LOCAL,
    port: Annotated[int, typer.Option(envvar="IZ_PORT", min=0, max=65535)] = 8080,
    database: opt.Database = None,
    targets: opt.Targets = None,
    generator_url: opt.GeneratorUrl = None,
    scorer_url: opt.ScorerUrl = None,
    model: opt.Model = DEMO,
    runner: Annotated[
        bool,
        typer.Option("--runner/--no-runner", envvar="IZ_RUNNER", help="Run the jobs here too."),
    ] = True,
    log_style: Log = LogStyle.TEXT,
) -> None:
    """Serve the REST API and run its jobs: everything in one process."""
    from services.commands.serving import Address, ServeRequest, serve_all
    from services.embedded import Options

    screen = _screen(log_style)
    options = Options(
        _database(database),
        targets=targets,
        generator_url=generator_url,
        scorer_url=scorer_url,
        model=model,
    )
    request = ServeRequest(options, Address(host, port), with_runner=runner)
    asyncio.run(serve_all(request, screen))


def demo_target(
    host: opt.Host = LOCAL,
    port: Annotated[int, typer.Option(envvar="IZ_DEMO_TARGET_PORT", min=0, max=65535)] = 9001,
    latency_ms: Annotated[
        float, typer.Option(envvar="IZ_LATENCY_MS", min=0, help="Wait before every answer.")
    ] = 0,
    rpm: Annotated[
        int | None, typer.Option(envvar="IZ_RPM", min=1, help="Requests a minute.")
    ] = None,
    tpm: Annotated[
        int | None, typer.Option(envvar="IZ_TPM", min=1, help="Tokens a minute.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(envvar="IZ_IN_FLIGHT", min=1, help="Requests at a time.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            envvar="IZ_FAULT", metavar="KIND=RATE", help="May be given several times: 500=0.1."
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(envvar="IZ_LOG", metavar="FILE.jsonl", help="One line a request."),
    ] = None,
    seed: Annotated[
        int, typer.Option(envvar="IZ_DEMO_TARGET_SEED", help="Which requests fail.")
    ] = 0,
) -> None:
    """Serve the bundled model as an OpenAI-compatible endpoint that misbehaves as told."""
    from services.commands.console import Screen
    from services.commands.serving import Address, bind, serve_app
    from services.demo.target import TargetOptions, create_app, parse_fault

    options = TargetOptions(
        latency_ms=latency_ms,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        in_flight=in_flight,
        faults=dict(parse_fault(text) for text in fault or ()),
        log=log,
        seed=seed,
    )
    with bind(Address(host, port)) as listener:
        asyncio.run(serve_app(create_app(options), listener, "Demo target", Screen()))


def generator(
    host: opt.Host = LOCAL,
    port: Annotated[int, typer.Option(envvar="IZ_GENERATOR_PORT", min=0, max=65535)] = 8001,
    model: opt.Model = DEMO,
    engine: Annotated[
        EngineName, typer.Option(envvar="IZ_GENERATOR_ENGINE", help="What runs the model.")
    ] = EngineName.TRANSFORMERS,
    log_style: Log = LogStyle.TEXT,
) -> None:
    """Serve the open model that writes instructions; with vllm, on Ray Serve."""
    from services.commands.serving import Address, bind, serve_app
    from services.demo import model_source
    from services.generator.app import create_app
    from services.generator.settings import GeneratorSettings
    from services.web import check_exposure

    screen = _screen(log_style)
    settings = GeneratorSettings(
        host=host, port=port, model=model_source(model), engine=engine.value
    )
    if model == DEMO and settings.served_name is None:  # its folder has another name
        settings = settings.model_copy(update={"served_name": DEMO})
    check_exposure("generator", host, settings.token)
    if engine is EngineName.VLLM:
        from services.commands.ray_serving import serve_on_ray

        serve_on_ray(settings, log_style.value, screen)
        return
    with bind(Address(host, port)) as listener:
        asyncio.run(serve_app(create_app(settings), listener, "Generator", screen))


def scorer(
    host: opt.Host = LOCAL,
    port: Annotated[int, typer.Option(envvar="IZ_SCORER_PORT", min=0, max=65535)] = 8002,
    targets: opt.Targets = None,
    redis: Annotated[
        str | None,
        typer.Option(
            envvar=["IZ_REDIS", "IZ_SCORER_REDIS_URL"],
            metavar="URL",
            help="Shares limits and answers between scorers.",
        ),
    ] = None,
    log_style: Log = LogStyle.TEXT,
) -> None:
    """Serve the scorer: it calls the targets within their limits and scores the answers."""
    from pydantic import SecretStr

    from services.commands.serving import Address, bind, serve_app
    from services.scorer.app import create_app
    from services.scorer.settings import Settings
    from services.web import check_exposure

    screen = _screen(log_style)
    settings = Settings(host=host, port=port, targets=targets)
    if redis is not None:
        settings = settings.model_copy(update={"redis_url": SecretStr(redis)})
    check_exposure("scorer", host, settings.token)
    with bind(Address(host, port)) as listener:
        work = serve_app(
            create_app(settings),
            listener,
            "Scorer",
            screen,
            drain_seconds=settings.drain_seconds,
        )
        asyncio.run(work)


def runner(
    database: opt.Database = None,
    generator_url: opt.GeneratorUrl = None,
    scorer_url: opt.ScorerUrl = None,
    host: opt.Host = LOCAL,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="IZ_RUNNER_PORT",
            min=0,
            max=65535,
            help="Serve /healthz, /readyz and /metrics there.",
            show_default="none",
        ),
    ] = None,
    log_style: Log = LogStyle.TEXT,
) -> None:
    """Run queued jobs of a shared database; generator and scorer are elsewhere."""
    from instructzero.errors import InvalidRequest
    from services.commands.serving import Address, bind, serve_runner
    from services.optimizer.runner_main import open_runner
    from services.optimizer.settings import Settings

    screen = _screen(log_style)
    missing = [
        name
        for name, value in (("--generator-url", generator_url), ("--scorer-url", scorer_url))
        if value is None
    ]
    if generator_url is None or scorer_url is None:
        raise InvalidRequest(
            f"a runner process needs {' and '.join(missing)}; for one machine use "
            "`instructzero serve`, which holds all parts"
        )
    settings = Settings() if database is None else Settings(database_url=database)
    opened = open_runner(settings, generator_url=generator_url, scorer_url=scorer_url)
    with ExitStack() as stack:
        listener = None if port is None else stack.enter_context(bind(Address(host, port)))
        asyncio.run(serve_runner(opened, listener, screen))


def migrate(database: opt.Database = None) -> None:
    """Bring a database's schema to this version; safe to run twice, and by many at a time."""
    from services.commands.console import Screen
    from services.commands.serving import shown_database
    from services.optimizer.database import migrate as bring_up

    raw = _database(database)
    revision = bring_up(raw)
    Screen().say(f"{shown_database(raw)} is at schema revision {revision}.")
