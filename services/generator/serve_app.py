"""The generator on Ray Serve: one deployment per open model behind one front.

`build` is what a Serve config names as `import_path`; `serve_here` runs the same application on a
Ray of this machine alone.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructzero.contracts import GenerateRequest, GenerateResponse, InstructionLine
from instructzero.errors import (
    GeneratorUnavailable,
    InstructZeroError,
    InvalidRequest,
)
from services import web
from services.generator.api import build_app
from services.generator.model_router import RETRY_SECONDS, ModelRouter
from services.generator.serve_config import LogStyle, ModelSettings, ServeArgs, ServedModel
from services.generator.settings import (
    GeneratorSettings,
    give_workers_full_priority,
    send_no_usage_reports,
    served_name,
)
from services.telemetry import configure_logging

APPLICATION = "generator"
QUEUE = 1_000
"""Requests that a front holds; each model refuses its own long before."""


class ModelReplica:
    """One copy of a model, in a process of its own."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it, in the loop that serves
        self, settings: GeneratorSettings, log_style: LogStyle
    ) -> None:
        """Load the model.

        Raises:
            InvalidRequest: it cannot be used; says what to do.
        """
        configure_logging(log_style)
        from services.generator.app import create_service  # loads torch

        self._service = await asyncio.to_thread(create_service, settings)
        await self._service.check()

    async def generate(self, request: GenerateRequest) -> GenerateResponse | InstructZeroError:
        """Return the answer, or the refusal: raised ones would fill the log with tracebacks."""
        try:
            return await self._service.generate(request)
        except InstructZeroError as error:
            return error

    async def stream(
        self, request: GenerateRequest
    ) -> AsyncGenerator[tuple[InstructionLine, ...] | InstructZeroError, None]:
        """Yield the same as they are finished; an error is the last."""
        try:
            async with aclosing(self._service.stream(request)) as parts:
                async for part in parts:
                    yield part
        except InstructZeroError as error:
            yield error

    async def state(self) -> str:
        """Return `ok`, or what is wrong."""
        return self._service.state()

    async def check_health(self) -> None:
        """Fail when the engine's process has ended: Serve then replaces this copy."""
        if (state := self._service.state()) != "ok":
            raise GeneratorUnavailable(state)

    async def __del__(self) -> None:
        """Finish what is in hand and end the engine."""
        if hasattr(self, "_service"):
            await self._service.aclose()


class OneRequestId:
    """ASGI middleware: a request keeps the id that Serve gave it, and a response names it once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        if re.fullmatch(r"[A-Za-z0-9-]{1,64}", given):
            scope.setdefault("state", {})["request_id"] = given

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]  # Serve adds it
            await send(message)

        await self._app(scope, receive, send_without_id)


class Front:
    """The HTTP side: the routes of the plain process, before models that run elsewhere."""

    def __init__(
        self,
        models: dict[str, DeploymentHandle],
        deadlines: dict[str, float],
        log_style: LogStyle,
    ) -> None:
        configure_logging(log_style)
        self._router = ModelRouter(models, deadlines)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; the token comes from this process's own environment."""
        app = build_app(GeneratorSettings(), self._router, self._lifespan)
        app.add_middleware(OneRequestId)
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._router.watch())
        yield
        watching.cancel()


def build(args: ServeArgs | dict[str, Any]) -> serve.Application:
    """Build the application that a Serve config describes; Serve gives its `args` as they stand.

    Raises:
        InvalidRequest: it would listen beyond this machine without a token.
        ValidationError: `args` say something else than `ServeArgs` may hold.
    """
    args = ServeArgs.model_validate(args)
    web.check_exposure("generator", args.host, GeneratorSettings().token)
    models = {model.name: _deploy(model, args.log_style) for model in args.models}
    deadlines = {model.name: model.settings.deadline_seconds for model in args.models}
    front = serve.deployment(
        serve.ingress()(Front),
        name="front",
        num_replicas=args.fronts,
        max_ongoing_requests=QUEUE,
        max_queued_requests=QUEUE,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_SECONDS),
        graceful_shutdown_timeout_s=max(m.settings.drain_seconds for m in args.models),
        ray_actor_options={"num_cpus": 0},  # it must start on a node that models fill
    )
    return front.bind(models, deadlines, args.log_style)


def serve_here(settings: GeneratorSettings, *, log_style: LogStyle = "json") -> Callable[[], None]:
    """Start Ray and the application on this machine; returns what stops both in order.

    Raises:
        InvalidRequest: the model cannot be served; says what to do.
    """
    send_no_usage_reports()
    give_workers_full_priority()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )

    def stop() -> None:
        # In this order: while the application finishes what it accepted, the proxies must live.
        if APPLICATION in serve.status().applications:
            serve.delete(APPLICATION)
        serve.shutdown()
        ray.shutdown()

    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run(build(_args_of(settings, log_style)), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        why = _why_not_served()
        stop()
        raise InvalidRequest(why, reason="engine_not_started") from error
    except BaseException:
        stop()
        raise
    return stop


def _args_of(settings: GeneratorSettings, log_style: LogStyle) -> ServeArgs:
    chosen = ModelSettings(**settings.model_dump(exclude={"token"}))
    name = settings.served_name or served_name(settings.model or "")
    gpus = settings.tensor_parallel if ray.cluster_resources().get("GPU") else 0
    model = ServedModel(name=name, settings=chosen, gpus=gpus)
    return ServeArgs(models=(model,), host=settings.host, log_style=log_style)


def _deploy(model: ServedModel, log_style: LogStyle) -> serve.Application:
    settings = model.settings.model_copy(update={"token": None, "served_name": model.name})
    replicas = model.replicas
    options: dict[str, Any] = {"num_replicas": replicas.min}
    if replicas.min < replicas.max:
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas.min,
                max_replicas=replicas.max,
                target_ongoing_requests=replicas.target_requests,
            )
        }
    deployment = serve.deployment(
        ModelReplica,
        name="model-" + re.sub(r"[^A-Za-z0-9._-]", "-", model.name),
        # Beyond what a copy takes at all, so that it is the copy that says when to come again.
        max_ongoing_requests=settings.max_waiting + 8,
        max_queued_requests=settings.max_waiting,
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        max_constructor_retry_count=3,
        ray_actor_options={"num_cpus": model.cpus, "num_gpus": model.n_gpus},
        **options,
    )
    return deployment.bind(settings, log_style)


def _why_not_served() -> str:
    """Return what a model's copy said when it could not start."""
    said = [
        deployment.message
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
    ]
    for message in said:
        if found := re.findall(r"InvalidRequest: (.+)", message):
            return str(found[-1])
    return "the model could not be served; the logs under /tmp/ray/session_latest/logs say why"
