"""Composition root of the API: routes, keys, problem documents, health checks."""

from __future__ import annotations

from fastapi import FastAPI

from services import web
from services.optimizer import api, api_catalog, api_record, api_usage
from services.optimizer.auth import KeyCheck, read_digests
from services.optimizer.intake import ApiDeps
from services.optimizer.looks import Looks
from services.optimizer.openapi import describe
from services.optimizer.queue_figures import read_queue
from services.optimizer.watch import Watch

__all__ = ["ApiDeps", "create_app"]

MAX_BODY_BYTES = 16 * 1024 * 1024


def create_app(deps: ApiDeps) -> FastAPI:
    """Build the API on parts that stay their giver's to close.

    It needs no lifespan, so it also serves requests inside a process that opens no port.

    Raises:
        InvalidRequest: a configured key digest is none.
    """
    app = FastAPI(
        title="InstructZero",
        summary="Finds the instruction that makes a black-box language model do a task best.",
        version=web.product_version(),
        docs_url=None,  # the usual pages load scripts from other hosts
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.deps = deps
    app.state.looks = Looks(deps.database)
    app.state.watch = Watch(app.state.looks)
    app.state.end_waits = app.state.watch.close  # for whoever stops the server
    for part in (api, api_record, api_usage, api_catalog):
        app.include_router(part.router)
    app.add_middleware(KeyCheck, digests=read_digests(deps.settings))

    async def before_scrape() -> None:
        await read_queue(deps.database)

    web.install(app, ready=deps.ready, max_body_bytes=MAX_BODY_BYTES, before_scrape=before_scrape)
    describe(app)
    return app
