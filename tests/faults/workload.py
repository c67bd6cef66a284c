"""The jobs that the harness submits, and what a client does to get them done."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from services.demo.corpus import INPUTS, demo_task

ENDED = {"succeeded", "failed", "cancelled"}
STRATEGIES = ("random", "ape", "random", "default", "random", "instructzero")
TEMPLATE = "Instruction: {instruction} #%02d\n\nInput: {input}\nOutput:"
"""The number of a job is in each of its requests, so that the target's log tells whose it is."""
N_VALIDATION, N_TEST, TRIALS, CALLS = 8, 8, 5, 40


@dataclass(frozen=True)
class Work:
    """One job to be done."""

    number: int
    spec: Mapping[str, Any]

    @property
    def calls(self) -> int | None:
        """The budget of calls, None where trials bound the job."""
        calls: int | None = self.spec["budget"].get("calls")
        return calls


def make_work(n_jobs: int, seed: int) -> list[Work]:
    """Return jobs of several strategies, tasks and tenants; every fourth has a budget of calls."""
    draw = random.Random(seed)
    names = sorted(INPUTS)
    return [
        Work(number, _spec(number, draw.choice(names), draw.randrange(10**6)))
        for number in range(n_jobs)
    ]


def _spec(number: int, name: str, seed: int) -> dict[str, Any]:
    exemplars, validation, test = (
        [{"input": text, "output": [answer]} for text, answer in rows] for rows in demo_task(name)
    )
    strategy = STRATEGIES[number % len(STRATEGIES)]
    options = {"pool": 30, "chunk": 15} if strategy == "default" else {}
    return {
        "name": f"{name}-{number}",
        "tenant": f"tenant-{number % 3}",
        "task": {
            "exemplars": exemplars,
            "validation": validation[:N_VALIDATION],
            "test": test[:N_TEST],
            "baseline": "Answer.",
        },
        "target": "demo",
        "template": TEMPLATE % number,
        "budget": {"calls": CALLS} if number % 4 == 3 else {"trials": TRIALS},
        "strategy": {"name": strategy, "options": options},
        "seed": seed,
    }


@dataclass(frozen=True)
class Ended:
    """A job's end, as the API shows it."""

    job_id: str
    job: Mapping[str, Any]
    result: Mapping[str, Any]


class Client:
    """Asks whichever API answers, and asks again when none does."""

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self._urls = urls
        self._draw = random.Random(seed)
        self._http = httpx.AsyncClient(timeout=20.0)
        self.n_failed = 0

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _ask(self, method: str, path: str, **options: Any) -> Mapping[str, Any]:
        while True:
            try:
                response = await self._http.request(
                    method, self._draw.choice(self._urls) + path, **options
                )
            except httpx.HTTPError:
                self.n_failed += 1
            else:
                if response.status_code in {200, 202}:
                    found: Mapping[str, Any] = response.json()
                    return found
                assert response.status_code in {409, 429, 502, 503}, response.text
                self.n_failed += 1
            await asyncio.sleep(0.2)

    async def create(self, work: Work, key: str) -> str:
        """Submit a job until it is accepted; a key makes repeating it safe."""
        headers = {"Idempotency-Key": key}
        job = await self._ask("POST", "/jobs", json=work.spec, headers=headers)
        job_id: str = job["id"]
        return job_id

    async def until_ended(self, job_id: str) -> Ended:
        while True:
            job = await self._ask("GET", f"/jobs/{job_id}?wait=10")
            if job["status"] in ENDED:
                return Ended(job_id, job, await self._ask("GET", f"/jobs/{job_id}/result"))

    async def do_all(
        self, works: Sequence[Work], name: str, *, over_seconds: float = 0.0
    ) -> list[Ended]:
        """Submit jobs over some time and wait for all of them."""

        async def later(work: Work, delay: float) -> Ended:
            await asyncio.sleep(delay)
            return await self.until_ended(await self.create(work, f"{name}-{work.number}"))

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(later(work, over_seconds * index / max(len(works), 1)))
                for index, work in enumerate(works)
            ]
        return [task.result() for task in tasks]
