"""Sends requests to the deployments of the models that they name, and their failures back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from instructzero.contracts import GenerateRequest, GenerateResponse, InstructionLine
from instructzero.errors import (
    FieldProblem,
    GeneratorUnavailable,
    InstructZeroError,
    InvalidRequest,
    Overloaded,
)
from services.generator.settings import DEFAULT

log = logging.getLogger(__name__)
STATE_SECONDS = 3.0
WATCH_SECONDS = 2.0
NONE_RUNS = "no copy of the model runs; one is being started"
RETRY_SECONDS = 5.0
"""When a caller may come again while a model is full, or being started."""


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
        name = self._name_of(request)
        deadline = request.deadline_seconds or self._deadlines[name]
        try:
            async with asyncio.timeout(deadline):
                answer = await _call(self._handle(name).generate, _as_default(request))
        except TimeoutError as error:
            raise _deadline_passed(deadline) from error
        if isinstance(answer, InstructZeroError):
            raise answer
        response: GenerateResponse = answer
        return response

    async def stream(
        self, request: GenerateRequest
    ) -> AsyncGenerator[tuple[InstructionLine, ...], None]:
        """Yield the same as they are finished; closing the generator ends the work."""
        name = self._name_of(request)
        deadline = request.deadline_seconds or self._deadlines[name]
        ends = asyncio.get_running_loop().time() + deadline
        handle = self._handle(name).options(stream=True)
        try:
            with _failures():
                parts = handle.stream.remote(_as_default(request))
            try:
                while True:
                    async with asyncio.timeout_at(ends):
                        with _failures():
                            part = await anext(parts, None)
                    if isinstance(part, InstructZeroError):
                        raise part
                    if part is None:
                        break
                    yield part
            finally:
                parts.cancel()  # does nothing to a call that has ended
        except TimeoutError as error:
            raise _deadline_passed(deadline) from error

    def _name_of(self, request: GenerateRequest) -> str:
        if request.model in self._models:
            return request.model
        if request.model != DEFAULT:
            raise _unknown_model(self.names())
        return next(iter(self._models))

    def _handle(self, name: str) -> DeploymentHandle:
        if self._n_running.get(name) == 0:
            raise GeneratorUnavailable(NONE_RUNS, retry_after_seconds=RETRY_SECONDS)
        return self._models[name]

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


async def _call(method: Any, *arguments: object) -> Any:
    """Call a deployment; cancelling the task cancels the call."""
    with _failures():
        response = method.remote(*arguments)
        try:
            return await response
        finally:
            response.cancel()  # does nothing to a call that has ended


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what a call to a deployment fails with into our own errors."""
    try:
        yield
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


def _as_default(request: GenerateRequest) -> GenerateRequest:
    """Return the request as a copy of its model takes it, whatever the model is called here."""
    return request.model_copy(update={"model": DEFAULT})


def _deadline_passed(seconds: float) -> GeneratorUnavailable:
    return GeneratorUnavailable(
        f"the instructions were not written within {seconds:g} seconds: the model is "
        "busy, or is being started; try again, or set a longer deadline",
        reason="deadline_exceeded",
    )


def _unknown_model(names: tuple[str, ...]) -> InvalidRequest:
    detail = f"this generator serves {' and '.join(names)}; name one of them"
    return InvalidRequest(detail, errors=[FieldProblem("/model", detail)], reason="unknown_model")
