"""The service around a writer: who is served, how many may wait, and for how long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing

from instructzero.contracts import GenerateRequest, GenerateResponse, InstructionLine
from instructzero.errors import (
    FieldProblem,
    GeneratorRefused,
    GeneratorUnavailable,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from services.generator import meters
from services.generator.settings import DEFAULT
from services.generator.writing import InstructionWriter

log = logging.getLogger(__name__)
LONGEST_RETRY_SECONDS = 60.0


class GeneratorService:
    """Serves one model; `generate` fails with the errors of the HTTP interface."""

    def __init__(
        self, writer: InstructionWriter, *, name: str, max_waiting: int, deadline_seconds: float
    ) -> None:
        self.name = name
        self._writer = writer
        self._max_waiting = max_waiting
        self._deadline_seconds = deadline_seconds
        self._n_waiting = 0
        self._seconds_each = 1.0
        self._is_closed = False
        self._is_idle = asyncio.Event()

    async def check(self) -> None:
        """Check the engine before the first request.

        Raises:
            InvalidRequest: the model cannot be used; says what to do.
        """
        await self._writer.engine.check()

    def names(self) -> tuple[str, ...]:
        """Return what a request may call the model."""
        return tuple(dict.fromkeys((DEFAULT, self.name)))

    def state(self) -> str:
        """Return `ok`, or what is wrong."""
        return "the generator is closed" if self._is_closed else self._writer.engine.state()

    async def states(self) -> Mapping[str, str]:
        """Return the engine's state."""
        return {"engine": self.state()}

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Return one instruction per point, as `stream` gives them."""
        async with aclosing(self.stream(request)) as parts:
            lines = [line async for part in parts for line in part]
        return GenerateResponse.of(lines, n_points=len(request.points))

    async def stream(
        self, request: GenerateRequest
    ) -> AsyncGenerator[tuple[InstructionLine, ...], None]:
        """Yield the instructions as they are finished; closing the generator ends the work.

        Raises:
            InvalidRequest: another model is meant, or the prompt is too long.
            Overloaded: as many requests as may be are in hand.
            GeneratorUnavailable: the engine failed, or the deadline passed.
        """
        self._check_admission(request)
        self._n_waiting += 1
        meters.IN_HAND.inc()
        self._is_idle.clear()
        started = time.monotonic()
        deadline = request.deadline_seconds or self._deadline_seconds
        ends = asyncio.get_running_loop().time() + deadline
        n_tokens = 0
        try:
            async with aclosing(self._writer.stream(request)) as parts:
                while True:
                    async with asyncio.timeout_at(ends):
                        part = await anext(parts, None)
                    if part is None:
                        break
                    n_tokens += _count(part)
                    yield part
        except TimeoutError as error:
            raise GeneratorUnavailable(
                f"the instructions were not written within {deadline:g} seconds: ask for fewer "
                "points at a time, fewer tokens, or set a longer deadline",
                reason="deadline_exceeded",
            ) from error
        finally:
            self._n_waiting -= 1
            meters.IN_HAND.dec()
            meters.WRITE_SECONDS.observe(time.monotonic() - started)
            if self._n_waiting == 0:
                self._is_idle.set()
        self._note(time.monotonic() - started, request, n_tokens)

    async def aclose(self) -> None:
        """Accept nothing more, finish what is in hand, close the engine."""
        self._is_closed = True
        if self._n_waiting:
            await self._is_idle.wait()
        await self._writer.aclose()

    def _check_admission(self, request: GenerateRequest) -> None:
        if request.model not in self.names():
            raise _unknown_model(self.names())
        if self._is_closed:
            raise GeneratorUnavailable(self.state())
        if self._n_waiting >= self._max_waiting:
            raise Overloaded(
                f"{self._n_waiting} requests are in hand already; try again later",
                retry_after_seconds=min(
                    LONGEST_RETRY_SECONDS, max(1.0, self._seconds_each * self._n_waiting)
                ),
            )

    def _note(self, seconds: float, request: GenerateRequest, n_tokens: int) -> None:
        share = seconds / (self._n_waiting + 1)
        self._seconds_each += 0.2 * (share - self._seconds_each)
        log.info(
            "wrote %d instructions, %d tokens; %d requests are in hand",
            len(request.points),
            n_tokens,
            self._n_waiting,
            extra={"request_id": request.request_id, "seconds": round(seconds, 3)},
        )


class InProcessGenerator:
    """The service for a caller in the same process, with the errors of the HTTP client."""

    def __init__(self, service: GeneratorService) -> None:
        self._service = service

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Return one instruction per point.

        Raises:
            GeneratorUnavailable: it is busy or broken.
            GeneratorRefused: it refuses the request.
        """
        try:
            return await self._service.generate(request)
        except InvalidRequest as error:
            raise GeneratorRefused(error.detail, errors=error.errors) from error
        except GeneratorUnavailable:
            raise
        except (Overloaded, Unavailable) as error:
            raise GeneratorUnavailable(
                error.detail, retry_after_seconds=error.retry_after_seconds
            ) from error

    async def models(self) -> tuple[str, ...] | None:
        """Return the names it answers to."""
        return self._service.names()

    async def aclose(self) -> None:
        """Close the engine."""
        await self._service.aclose()


def _count(lines: Iterable[InstructionLine]) -> int:
    """Measure what was written; returns its tokens."""
    written = [line.instruction for line in lines]
    for each in written:
        meters.INSTRUCTIONS.labels(each.rejected or "usable").inc()
    n_tokens = sum(each.tokens for each in written)
    meters.GENERATED_TOKENS.inc(n_tokens)
    return n_tokens


def _unknown_model(names: tuple[str, ...]) -> InvalidRequest:
    detail = f"this generator serves {' and '.join(names)}; name one of them"
    return InvalidRequest(detail, errors=[FieldProblem("/model", detail)], reason="unknown_model")
