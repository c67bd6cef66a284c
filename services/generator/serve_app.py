"""The generator on Ray Serve: one deployment per open model behind one front.

`build` is what a Serve config names as `import_path`; `serve_here` runs the same application on a
Ray of this machine alone.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from instructzero.contracts import GenerateRequest, GenerateResponse
from instructzero.errors import (
    FieldProblem,
    GeneratorUnavailable,
    InstructZeroError,
    InvalidRequest,
    Overloaded,
)
from services.generator.api import build_app
from services.generator.serve_config import LogStyle, ModelSettings, ServeArgs, ServedModel
from services.generator.settings import (
    DEFAULT,
    GeneratorSettings,
    check_exposure,
    send_no_usage_reports,
    served_name,
)
from services.telemetry import configure_logging

log = logging.getLogger(__name__)
APPLICATION = "generator"
STATE_SECONDS = 3.0
WATCH_SECONDS = 2.0
NONE_RUNS = "no copy of the model runs; one is being started"
RETRY_SECONDS = 5.0
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


class ModelRouter:
    """Sends each request to the model that it names, where a copy of it runs."""

    def __init__(
        self, models: Mapping[str, DeploymentHandle], deadlines: Mapping[str, float]
    ) -> None:
        self._models = models
        self._deadlines = deadlines
        self._n_running: dict[str, int] = {}

    async def watch(self) -> None:
        """Keep count of the copies that run: a request for none would wait without a word."""
        application = serve.get_replica_context().app_name
        while True:
            try:
                status = await asyncio.to_thread(serve.status)
            except (RayError, RayServeException, TimeoutError) as error:
                log.warning("Serve's controller does not answer: %s", type(error).__name__)
            else:
                found = status.applications.get(application)
                self._n_running = {
                    name: found.deployments[handle.deployment_name].replica_states.get("RUNNING", 0)
                    for name, handle in self._models.items()
                    if found is not None and handle.deployment_name in found.deployments
                }
            await asyncio.sleep(WATCH_SECONDS)

    def names(self) -> tuple[str, ...]:
        """Return what a request may call the models."""
        return tuple(dict.fromkeys((DEFAULT, *self._models)))  # the first model is the default

    async def states(self) -> Mapping[str, str]:
        """Return each model's state."""
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(self._state(name)) for name in self._models}
        return {name: task.result() for name, task in tasks.items()}

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Return one instruction per point.

        Raises:
            InvalidRequest: no model has this name, or the model refuses the request.
            Overloaded: the model has as many requests in hand as may be.
            GeneratorUnavailable: no copy of it answers.
        """
        name = request.model
        if name not in self._models:
            if name != DEFAULT:
                raise _unknown_model(self.names())
            name = next(iter(self._models))
        request = request.model_copy(update={"model": DEFAULT})
        deadline = request.deadline_seconds or self._deadlines[name]
        try:
            async with asyncio.timeout(deadline):
                if self._n_running.get(name) == 0:
                    raise GeneratorUnavailable(NONE_RUNS, retry_after_seconds=RETRY_SECONDS)
                answer = await _call(self._models[name].generate, request)
        except TimeoutError as error:
            raise GeneratorUnavailable(
                f"the instructions were not written within {deadline:g} seconds: the model is "
                "busy, or is being started; try again, or set a longer deadline",
                reason="deadline_exceeded",
            ) from error
        if isinstance(answer, InstructZeroError):
            raise answer
        response: GenerateResponse = answer
        return response

    async def _state(self, name: str) -> str:
        if self._n_running.get(name) == 0:
            return NONE_RUNS
        try:
            async with asyncio.timeout(STATE_SECONDS):
                return str(await _call(self._models[name].state))
        except TimeoutError:
            return "no copy of the model answers"
        except InstructZeroError as error:
            return error.detail


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
        return build_app(GeneratorSettings(), self._router, self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._router.watch())
        yield
        watching.cancel()


def build(args: ServeArgs) -> serve.Application:
    """Build the application that a Serve config describes.

    Raises:
        InvalidRequest: it would listen beyond this machine without a token.
    """
    check_exposure(GeneratorSettings().model_copy(update={"host": args.host}))
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
        ray_actor_options={"num_cpus": 0.1},
    )
    return front.bind(models, deadlines, args.log_style)


def serve_here(settings: GeneratorSettings, *, log_style: LogStyle = "json") -> Callable[[], None]:
    """Start Ray and the application on this machine; returns what stops both in order.

    Raises:
        InvalidRequest: the model cannot be served; says what to do.
    """
    _check_port(settings)
    send_no_usage_reports()
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


def _check_port(settings: GeneratorSettings) -> None:
    """Say now, not in a minute, that another process listens there."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise InvalidRequest(
                f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); give "
                "another --port",
                reason="port_unavailable",
            ) from error


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


async def _call(method: Any, *arguments: object) -> Any:
    """Call a deployment; failures become our own, and cancelling the task cancels the call."""
    try:
        response = method.remote(*arguments)
        try:
            return await response
        finally:
            response.cancel()  # does nothing to a call that has ended
    except BackPressureError as error:
        raise Overloaded(
            "as many requests are in hand as the model takes; try again later",
            retry_after_seconds=RETRY_SECONDS,
        ) from error
    except TaskCancelledError as error:
        raise GeneratorUnavailable(
            "the request was cancelled", retry_after_seconds=RETRY_SECONDS
        ) from error
    except (RayError, RayServeException) as error:
        log.warning("a model did not answer: %s", type(error).__name__)
        raise GeneratorUnavailable(
            "the model's process ended while it wrote; another one is being started",
            retry_after_seconds=RETRY_SECONDS,
        ) from error


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


def _unknown_model(names: tuple[str, ...]) -> InvalidRequest:
    detail = f"this generator serves {' and '.join(names)}; name one of them"
    return InvalidRequest(detail, errors=[FieldProblem("/model", detail)], reason="unknown_model")
