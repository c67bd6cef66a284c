"""Composition root of the scorer process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from instructzero.errors import InvalidRequest
from services import web
from services.scorer.api import router
from services.scorer.rate_limit import RateLimiter
from services.scorer.scoring import ScorerPool
from services.scorer.settings import Settings
from services.scorer.stream import ScoresEndpoint, is_asked
from services.scorer.targets import Targets, load_targets


class ScorerApp(FastAPI):
    """The routes, and `POST /v1/scores` beside them, which goes through no layer of theirs."""

    scores: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if is_asked(scope):
            await self.scores(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings, pool: ScorerPool | None = None) -> FastAPI:
    """Build the service; a pool that is given stays its giver's to close."""
    own = pool or create_pool(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if pool is None:
            await own.aclose()

    app = ScorerApp(
        title="InstructZero scorer",
        version=web.product_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.settings = settings
    app.state.pool = own
    app.include_router(router)
    app.scores = web.Envelope(ScoresEndpoint(own, settings))

    async def ready() -> Mapping[str, str]:
        return await own.ready()

    return web.install(app, ready=ready)


def create_pool(settings: Settings) -> ScorerPool:
    """Build the pool that the settings describe.

    Raises:
        InvalidRequest: the targets file is missing or wrong; says what to do.
    """
    targets = read_targets(settings)
    if settings.redis_url is None:
        return ScorerPool(targets, settings=settings)
    # a scorer alone does without the client of Redis, which takes 8 MB
    from services.scorer.redis_cache import RedisCache
    from services.scorer.redis_gate import RedisGate
    from services.scorer.redis_link import open_redis

    redis = open_redis(settings.redis_url.get_secret_value())
    return ScorerPool(
        targets,
        settings=settings,
        limiter=RateLimiter(RedisGate(redis)),
        cache=RedisCache(redis, ttl_seconds=settings.answer_ttl_seconds),
    )


def read_targets(settings: Settings) -> Targets:
    """Read the targets file that the settings name.

    Raises:
        InvalidRequest: there is none, or it is wrong.
    """
    if settings.targets is None:
        raise InvalidRequest(
            "the scorer needs a targets file: give --targets FILE or IZ_SCORER_TARGETS",
            reason="invalid_targets",
        )
    return load_targets(settings.targets)
