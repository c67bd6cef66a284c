"""Clients of the REST API: `AsyncClient` for services, `Client` for scripts."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import SecretStr

from instructzero import flows
from instructzero.blocking import Client
from instructzero.connection import DEFAULT_URL, Connection
from instructzero.contracts import (
    DryRun,
    Event,
    GeneratorView,
    Job,
    JobPage,
    JobSpec,
    JobStatus,
    MetricView,
    Result,
    StrategyView,
    TargetView,
    TrialDetail,
    TrialView,
    UsageReport,
)
from instructzero.flows import Call, Done, Flow, Outcome, Pause, advance

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")
Spec = JobSpec | Mapping[str, Any]
OnUpdate = Callable[[Job], None]


class AsyncClient:
    """The REST API, awaited; close it, or use it as a context manager.

    Every method raises a subclass of `InstructZeroError` for what the server refuses, and
    `Unavailable` when it cannot be reached.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | SecretStr | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Prepare; no connection is made yet.

        Args:
            base_url: where the server is.
            api_key: sent as a bearer token; never shown.
            transport: another way to the server, e.g. one in this process.
            timeout_seconds: how long an answer may take (long polls come on top).
        """
        self._connection = Connection(base_url, api_key, timeout_seconds)
        self._http = httpx.AsyncClient(transport=transport, follow_redirects=False)

    def __repr__(self) -> str:
        return f"AsyncClient({self._connection!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        step = advance(flow, None)
        while not isinstance(step, Done):
            step = advance(flow, await self._carry_out(step))
        return step.value

    async def _carry_out(self, step: Call | Pause) -> Outcome:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._http.send(self._connection.request(step))
        except httpx.TransportError as error:
            return error

    async def create(self, spec: Spec, *, idempotency_key: str | None = None) -> Job:
        """Create a job; safe to repeat after a broken connection, by a key of its own."""
        return await self._run(flows.create(spec, idempotency_key))

    async def estimate(self, spec: Spec) -> DryRun:
        """Check a spec and say what it would cost; nothing is stored."""
        return await self._run(flows.estimate(spec))

    async def get(
        self, job_id: str, *, wait_seconds: float | None = None, newer_than: int | None = None
    ) -> Job:
        """Return a job; wait up to `wait_seconds` (at most 60) for a version after `newer_than`."""
        return await self._run(flows.get(job_id, wait_seconds, newer_than))

    async def list(
        self,
        status: JobStatus | str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Return one page of jobs, newest first."""
        return await self._run(flows.list_jobs(status, labels, limit, cursor))

    async def cancel(self, job_id: str) -> Job:
        """End a job with what it knows."""
        return await self._run(flows.steer(job_id, "cancel"))

    async def pause(self, job_id: str) -> Job:
        """Stop a job from spending until it is resumed."""
        return await self._run(flows.steer(job_id, "pause"))

    async def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return await self._run(flows.steer(job_id, "resume"))

    async def delete(self, job_id: str) -> None:
        """Delete a finished job and all it left."""
        await self._run(flows.delete(job_id))

    async def wait(
        self,
        job_id: str,
        *,
        timeout_seconds: float | None = None,
        on_update: OnUpdate | None = None,
    ) -> Job:
        """Return a job when it has ended; a restart of the server is waited out.

        Raises:
            TimeoutError: it had not ended after `timeout_seconds`.
        """
        return await self._run(flows.wait(job_id, timeout_seconds, on_update))

    async def trials(self, job_id: str) -> builtins.list[TrialView]:
        """Return every instruction that was tried, in the order they were first tried."""
        return await self._run(flows.trials(job_id))

    async def trial(self, job_id: str, n: int) -> TrialDetail:
        """Return one trial with its answers."""
        return await self._run(flows.fetch(TrialDetail, flows.read(job_id, "trials", str(n))))

    async def result(self, job_id: str) -> Result:
        """Return the result document of a finished job."""
        return await self._run(flows.fetch(Result, flows.read(job_id, "result")))

    async def events(self, job_id: str, after: int = 0) -> builtins.list[Event]:
        """Return what happened to a job after a sequence number, oldest first."""
        return await self._run(flows.events(job_id, after))

    async def export(self, job_id: str, format: Literal["jsonl", "csv"] = "jsonl") -> str:
        """Return every evaluation as text."""
        return await self._run(flows.export(job_id, format))

    async def targets(self) -> builtins.list[TargetView]:
        """Return what a job may name as its target."""
        return await self._run(flows.listing(TargetView, "/targets"))

    async def generators(self) -> builtins.list[GeneratorView]:
        """Return the generator models that a job may name."""
        return await self._run(flows.listing(GeneratorView, "/generators"))

    async def strategies(self) -> builtins.list[StrategyView]:
        """Return the search strategies with their options."""
        return await self._run(flows.listing(StrategyView, "/strategies"))

    async def metrics(self) -> builtins.list[MetricView]:
        """Return the metrics that the server computes."""
        return await self._run(flows.listing(MetricView, "/metrics-catalog"))

    async def usage(
        self,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        group_by: str = "job",
        limit: int = 50,
        cursor: str | None = None,
    ) -> UsageReport:
        """Return what the jobs created in a period have cost, by job, target or label.KEY."""
        return await self._run(flows.usage(since, until, group_by, limit, cursor))

    async def version(self) -> str:
        """Return the server's version."""
        return await self._run(flows.server_version())
