"""A small world for the loop's tests: a generator and a scorer that cost nothing.

Both speak the loop's own Protocols. The scorer counts every request it sends to its imaginary
target, so that budgets and repeats can be checked at the place where money would be spent.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, MutableSequence
from dataclasses import dataclass, field

import numpy as np

from instructzero.contracts import (
    GeneratedInstruction,
    GenerateRequest,
    GenerateResponse,
    JobSpec,
    ScoreCondition,
    ScoreError,
    ScoreLine,
    ScoreRequest,
    TargetView,
    TokenUsage,
)
from instructzero.errors import GeneratorUnavailable

EDGES = [-0.8, -0.5, 0.0, 0.5, 0.8]


def chance(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts alone."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
    return int(digest[:12], 16) / 16**12


@dataclass
class PlainGenerator:
    """Maps the first two coordinates to one of 36 texts; better texts have higher numbers."""

    fingerprint: str = "world-1"
    outages: int = 0
    requests: MutableSequence[GenerateRequest] = field(default_factory=list)

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Return one text per point."""
        self.requests.append(request)
        if self.outages > 0:
            self.outages -= 1
            raise GeneratorUnavailable("not now")
        await asyncio.sleep(0)
        texts = [
            f"Rule {np.digitize(z[0], EDGES) * 6 + np.digitize(z[1], EDGES)}."
            for z in request.points
        ]
        return GenerateResponse(
            fingerprint=self.fingerprint,
            instructions=tuple(GeneratedInstruction(text=text, tokens=3) for text in texts),
        )


def quality(instruction: str) -> float:
    """Return the true score of an instruction."""
    number = instruction.removeprefix("Rule ").removesuffix(".")
    return (int(number) + 1) / 37 if number.isdigit() else 0.3


@dataclass
class PlainScorer:
    """Answers right with the instruction's quality as probability, fixed per example.

    `fails` is the share of requests that fail (and are retried within the request's calls). With
    `uneven`, answers take up to so many seconds more and overtake each other, otherwise each time.
    """

    in_flight: int = 8
    fails: float = 0.0
    price: dict[str, float] | None = None
    latency_seconds: float = 0.0
    uneven_seconds: float = 0.0
    stop_code: str | None = None
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests: int = 0
    now_in_flight: int = 0
    most_in_flight: int = 0

    async def targets(self) -> tuple[TargetView, ...]:
        """Return the one connection there is."""
        return (
            TargetView(
                name="world",
                model="m",
                limits={"in_flight": self.in_flight},
                price=self.price,  # type: ignore[arg-type]
                max_tokens=16,
            ),
        )

    async def score(self, request: ScoreRequest) -> AsyncIterator[ScoreLine | ScoreCondition]:
        """Yield one line per example."""
        left = request.calls if request.calls is not None else 10**9
        for example in request.examples:
            used, failed = 0, 0
            answered = False
            while left > 0 and used < 5 and not answered:
                left, used = left - 1, used + 1
                self.requests += 1
                self.now_in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.now_in_flight)
                await asyncio.sleep(self.latency_seconds + self.uneven_seconds * random.random())
                self.now_in_flight -= 1
                answered = chance("fault", self.requests) >= self.fails
                failed += not answered
            yield self._line(request, example.id, example.input, used, failed, answered)

    def _line(
        self, request: ScoreRequest, name: str, text: str, used: int, failed: int, answered: bool
    ) -> ScoreLine:
        if self.stop_code is not None:
            error = ScoreError(code=self.stop_code, message="the key is wrong", stops_job=True)
            return ScoreLine(id=name, error=error, calls=used, failed_calls=used)
        if not answered:
            error = ScoreError(code="unanswered", message="no answer", retryable=True)
            return ScoreLine(id=name, error=error, calls=used, failed_calls=failed)
        self.sent[(request.instruction, text)] += 1
        right = chance(request.instruction, text) < quality(request.instruction)
        return ScoreLine(
            id=name,
            answer="right" if right else "wrong",
            score=float(right),
            usage=TokenUsage(prompt_tokens=20, completion_tokens=2),
            calls=used,
            failed_calls=failed,
            usd=0.00001,
        )


def make_spec(**changes: object) -> JobSpec:
    """Return a small valid job spec on the world's target."""
    content: dict[str, object] = {
        "name": "world",
        "task": {
            "exemplars": [{"input": "a", "output": "b"}],
            "validation": [{"input": f"v{i}", "output": ["b"]} for i in range(12)],
            "test": [{"input": f"t{i}", "output": ["b"]} for i in range(40)],
            "baseline": "Do the task.",
        },
        "target": "world",
        "budget": {"calls": 200},
        "strategy": "random",
    }
    return JobSpec.model_validate(content | changes)


async def until(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it did not in time.
    """
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)
