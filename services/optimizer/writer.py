"""Turn a step's latent points into instructions and store them in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from instructzero.contracts import (
    MAX_TEXT,
    ExemplarPair,
    FilledText,
    GeneratedInstruction,
    GenerateRequest,
    GenerateResponse,
    ProjectionSpec,
)
from instructzero.errors import FingerprintChanged, GeneratorRefused, GeneratorUnavailable
from services.optimizer import store
from services.optimizer.database import Database
from services.optimizer.failpoints import fail_point
from services.optimizer.ledger import Ledger
from services.optimizer.state import JobState
from services.optimizer.steps import Step
from services.optimizer.store import Claim
from services.optimizer.tables import ArmRow, PointRow

log = logging.getLogger(__name__)
CONDITION = "generator_unavailable"
LONGEST_PAUSE_SECONDS = 60.0
_JITTER = wait_random_exponential(0.5, max=10.0)
_TEXT: TypeAdapter[str] = TypeAdapter(FilledText)


class Generator(Protocol):
    """Turns latent points into instructions; in process or over HTTP."""

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Return one instruction per point, in order."""
        ...


class Writer:
    """Generates instructions for one claimed job."""

    def __init__(
        self,
        state: JobState,
        ledger: Ledger,
        generator: Generator,
        database: Database,
        claim: Claim,
        *,
        batch: int,
        patience_seconds: float,
        may_go_on: Callable[[], bool],
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._generator = generator
        self._database = database
        self._claim = claim
        self._batch = batch
        self._patience_seconds = patience_seconds
        self._may_go_on = may_go_on
        self._turn = asyncio.Lock()

    async def write(self, step: Step) -> bool:
        """Write what is missing of a step's points; False if a person ended it early.

        Steps are written one after the other: arms are numbered in the order of their points.

        Raises:
            FingerprintChanged: the generator's search space is not the job's.
            GeneratorRefused: the generator will not write for this job.
            GeneratorUnavailable: it did not answer within the patience.
        """
        async with self._turn:
            return await self._write(step)

    async def _write(self, step: Step) -> bool:
        first = sum(len(other.points) for other in self._state.steps if other.number < step.number)
        written = len(self._state.points) - first
        if written < 0:  # an earlier step was ended early, and so is this one
            return False
        notes = step.content.get("point_notes", ())
        while written < len(step.points):
            if not self._may_go_on():
                return False
            points = step.points[written : written + self._batch]
            answer = await self._ask(points, first + written)
            rows, arms = self._read(
                answer.instructions, points, notes[written:], step.number, first + written
            )
            fail_point("generated")
            await self._store(answer.fingerprint, rows, arms)
            fail_point("written")
            written += len(points)
        return True

    async def _ask(self, points: Sequence[Sequence[float]], number: int) -> GenerateResponse:
        request = self._request(points, number)
        response: GenerateResponse | None = None
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(GeneratorUnavailable),
            wait=_pause,
            stop=stop_after_delay(self._patience_seconds),
            before_sleep=self._say_waiting,
            reraise=True,
        ):
            with attempt:
                if not self._may_go_on():
                    raise GeneratorRefused("interrupted", reason="interrupted")
                response = await self._generator.generate(request)
                if attempt.retry_state.attempt_number > 1:
                    await self._ledger.set_condition(CONDITION, is_on=False)
        if response is None or len(response.instructions) != len(points):
            raise GeneratorRefused("the generator did not answer every point")
        known = self._state.fingerprint
        if known is not None and response.fingerprint != known:
            raise FingerprintChanged(
                "the generator's model, engine or projection changed since the job began; "
                "start a new job; what this one has found is in its result"
            )
        return response

    async def _say_waiting(self, state: RetryCallState) -> None:
        log.warning("the generator does not answer", extra={"job_id": self._state.job_id})
        await self._ledger.set_condition(CONDITION, is_on=True)

    def _request(self, points: Sequence[Sequence[float]], number: int) -> GenerateRequest:
        spec = self._state.spec
        return GenerateRequest(
            request_id=f"{self._state.job_id}-{number}",
            model=spec.generator.name,
            tenant=spec.tenant,
            exemplars=tuple(
                ExemplarPair(input=example.input, output=example.output[0])
                for example in spec.task.exemplars
            ),
            projection=ProjectionSpec(
                seed=spec.seed,
                kind=spec.generator.projection,
                scale=spec.generator.scale,
                n_tokens=spec.generator.n_tokens,
                intrinsic_dim=spec.generator.intrinsic_dim,
            ),
            soft_position=spec.generator.soft_position,
            points=tuple(tuple(point) for point in points),
            max_tokens=spec.generator.max_tokens,
            seed=spec.seed,
        )

    def _read(
        self,
        instructions: Sequence[GeneratedInstruction],
        points: Sequence[Sequence[float]],
        notes: Sequence[dict[str, Any]],
        step: int,
        first: int,
    ) -> tuple[list[PointRow], list[ArmRow]]:
        """Return the rows of some points and of the arms that they open."""
        rows: list[PointRow] = []
        arms: list[ArmRow] = []
        opened: dict[str, int] = {}
        n_arms = len(self._state.arms)
        for offset, (written, z) in enumerate(zip(instructions, points, strict=True)):
            text = written.text.strip()
            rejected = written.rejected or _unusable(text)
            arm = None
            if rejected is None:
                arm = self._state.by_text.get(text, opened.get(text))
            if rejected is None and arm is None:
                arm = opened[text] = n_arms + len(arms)
                arms.append(
                    ArmRow(
                        job_id=self._state.job_id,
                        n=arm,
                        text=text,
                        source="soft_prompt",
                        step=step,
                        point=first + offset,
                        n_points=0,
                    )
                )
            rows.append(
                PointRow(
                    job_id=self._state.job_id,
                    n=first + offset,
                    step=step,
                    z=list(z),
                    note=dict(notes[offset]) if offset < len(notes) else None,
                    arm=arm,
                    text="" if rejected == "control_characters" else text[:MAX_TEXT],
                    rejected=rejected,
                    tokens=written.tokens,
                )
            )
        return rows, arms

    async def _store(self, fingerprint: str, rows: list[PointRow], arms: list[ArmRow]) -> None:
        await store.transact(
            self._database.writes,
            lambda session: store.store_texts(
                session, self._claim, fingerprint=fingerprint, points=rows, new_arms=arms
            ),
        )
        self._state.fingerprint = fingerprint
        for arm in arms:
            self._state.add_arm(arm)
        self._state.points.extend(rows)


def _pause(state: RetryCallState) -> float:
    """Return when to ask again: when the generator said, or later and later."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_seconds if isinstance(error, GeneratorUnavailable) else None
    return min(asked or 0.0, LONGEST_PAUSE_SECONDS) + float(_JITTER(state))


def _unusable(text: str) -> str | None:
    """Name the guard that refuses a text no target may see; None if it is usable."""
    if not text:
        return "empty"
    if len(text) > MAX_TEXT:
        return "too_long"
    try:
        _TEXT.validate_python(text)
    except ValidationError:
        return "control_characters"
    return None
