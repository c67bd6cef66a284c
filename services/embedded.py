"""Composition root of the all-in-one process: one file, one process, no service to start.

With `cli.py` the only module that may import all three services. It joins them through the loop's
own Protocols: the same loop, the same store, the same scorer and generator as in a cluster.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from filelock import FileLock, Timeout
from sqlalchemy.exc import DBAPIError

from instructzero.contracts import MetricSpec, ScoreCondition, ScoreLine, ScoreRequest, TargetView
from instructzero.errors import Conflict, ScorerUnavailable
from services.answer_store import DatabaseCache
from services.demo import model_source
from services.optimizer import failpoints, store
from services.optimizer.app import create_app
from services.optimizer.buyer import Scorer
from services.optimizer.clients import HttpGenerator, HttpScorer
from services.optimizer.database import Database, ensure_schema, open_database, sqlite_path
from services.optimizer.intake import ApiDeps
from services.optimizer.job_run import LoopDeps
from services.optimizer.runner import Runner
from services.optimizer.settings import Settings
from services.optimizer.writer import Generator
from services.scorer.metrics import check_outputs
from services.scorer.settings import Settings as ScorerSettings
from services.scorer.targets import Targets, load_targets

if TYPE_CHECKING:
    from services.generator.service import InProcessGenerator
    from services.scorer.scoring import ScorerPool

DEMO = "demo"
DEMO_TARGET_URL = "http://127.0.0.1:9001"
"""Where `instructzero demo-target` listens unless told otherwise."""


@dataclass(frozen=True)
class Options:
    """How the process is put together; what is None is done in process."""

    database: str
    targets: Path | None = None
    generator_url: str | None = None
    scorer_url: str | None = None
    model: str = DEMO
    demo_target_url: str | None = None
    settings: Settings | None = None


@dataclass(frozen=True)
class Parts:
    """The process's parts, ready for use."""

    database: Database
    generator: Generator | None
    scorer: Scorer
    settings: Settings
    runner: Runner | None
    ready: Callable[[], Awaitable[Mapping[str, str]]]

    async def run_job(self, job_id: str) -> bool:
        """Run one job until it leaves `running`; cancelling the task drains it first.

        Returns:
            Whether the job could be claimed.
        """
        if self.runner is None:
            raise Conflict("this process was opened without a runner")
        work = asyncio.create_task(self.runner.run_one(job_id))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self.runner.drain()
            await work
            raise


def lock_database(raw: str) -> FileLock | None:
    """Take the lock of an embedded database; None for Postgres, which needs none.

    Raises:
        Conflict: another process runs jobs on this file.
    """
    path = sqlite_path(raw)
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Conflict(
            f"another process runs jobs on {path}; stop it, give another --database, "
            "or submit to it with --url",
            reason="database_in_use",
        ) from error
    return lock


def registered_targets(options: Options) -> Targets:
    """Return the targets file's connections, or the demo target's alone.

    Raises:
        InvalidRequest: the targets file is missing or wrong.
    """
    if options.targets is not None:
        return load_targets(options.targets)
    url = options.demo_target_url or DEMO_TARGET_URL
    return Targets.of({"targets": {DEMO: demo_connection(url)}})


def demo_connection(url: str) -> dict[str, Any]:
    """Return the connection to the bundled demo target."""
    return {
        "base_url": f"{url.rstrip('/')}/v1",
        "model": DEMO,
        "limits": {"in_flight": 16},
        "price": {"input_per_million": 0.15, "output_per_million": 0.60},
        "sampling": {"temperature": 0, "max_tokens": 16},
        "timeout_seconds": 30,
    }


def open_generator(options: Options, settings: Settings) -> HttpGenerator | InProcessGenerator:
    """Return the generator: over HTTP, or the transformers engine in this process.

    Raises:
        InvalidRequest: the model cannot be used; says what to do.
    """
    if options.generator_url is not None:
        return HttpGenerator(
            options.generator_url,
            in_flight=settings.generator_in_flight,
            token=settings.generator_token,
        )
    from services.generator.app import open_writer  # loads torch

    return open_writer(model_source(options.model))


class Catalogue:
    """Says which targets there are, for a process that calls none of them."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets

    async def targets(self) -> tuple[TargetView, ...]:
        """Return every registered connection."""
        return tuple(target.view() for target in self._targets)

    async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
        """Refuse: no runner, no calls.

        Raises:
            ScorerUnavailable: always.
        """
        raise ScorerUnavailable("this process runs no jobs")
        yield

    async def aclose(self) -> None:
        """Close nothing."""


def open_scorer(
    options: Options, settings: Settings, database: Database, *, with_runner: bool = True
) -> ScorerPool | HttpScorer | Catalogue:
    """Return the scorer: over HTTP, the pool in this process, or the list of targets alone."""
    if options.scorer_url is not None:
        return HttpScorer(options.scorer_url, token=settings.scorer_token)
    if not with_runner:
        return Catalogue(registered_targets(options))
    from services.scorer.scoring import ScorerPool  # loads the OpenAI SDK

    own = ScorerSettings()
    cache = DatabaseCache(database, ttl_seconds=own.answer_ttl_seconds)
    return ScorerPool(registered_targets(options), settings=own, cache=cache)


def readiness(
    database: Database, scorer: ScorerPool | HttpScorer | Catalogue
) -> Callable[[], Awaitable[Mapping[str, str]]]:
    """Return the check behind /readyz."""

    async def ready() -> Mapping[str, str]:
        parts: dict[str, str] = {}
        try:
            async with asyncio.timeout(3):
                await store.ping(database.reads)
            parts["database"] = "ok"
        except (OSError, TimeoutError, DBAPIError):
            parts["database"] = "does not answer"
        if not isinstance(scorer, Catalogue | HttpScorer):
            parts |= await scorer.ready()
        return parts

    return ready


@asynccontextmanager
async def open_parts(options: Options, *, with_runner: bool = True) -> AsyncIterator[Parts]:
    """Open everything the process needs and close it again.

    Raises:
        Conflict: another process runs jobs on this SQLite file.
        InvalidRequest: a wrong targets file, database URL or schema.
    """
    settings = options.settings or Settings(database_url=options.database)
    failpoints.arm(settings.fail_points)
    is_embedded = sqlite_path(options.database) is not None
    async with AsyncExitStack() as stack:
        if with_runner and (lock := lock_database(options.database)) is not None:
            stack.callback(lock.release)
        await asyncio.to_thread(ensure_schema, options.database, embedded=is_embedded)
        database = open_database(options.database)
        stack.push_async_callback(database.close)
        scorer = open_scorer(options, settings, database, with_runner=with_runner)
        stack.push_async_callback(scorer.aclose)
        runner = None
        generator = None
        if with_runner:
            generator = await asyncio.to_thread(open_generator, options, settings)
            stack.push_async_callback(generator.aclose)
            deps = LoopDeps(database, generator, scorer, settings)
            runner = Runner(deps, take_over=is_embedded)
            stack.callback(runner.close)
        yield Parts(database, generator, scorer, settings, runner, readiness(database, scorer))


def create_api(parts: Parts) -> FastAPI:
    """Build the REST API on the process's parts, which must stay open while it serves."""
    return create_app(
        ApiDeps(
            database=parts.database,
            scorer=parts.scorer,
            generator=parts.generator,
            settings=parts.settings,
            check_metric=check_metric,
            ready=parts.ready,
        )
    )


def check_metric(metric: MetricSpec, outputs: Sequence[str]) -> str | None:
    """Say why expected outputs cannot be used with a metric, None if they can."""
    return check_outputs(metric, outputs)


def drain_on_signals(runner: Runner) -> None:
    """Let SIGTERM and SIGINT end the runner in order."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runner.drain)
