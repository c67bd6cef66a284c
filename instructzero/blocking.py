"""The client for scripts: every method blocks. `AsyncClient` has the same methods, awaited."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import SecretStr

from instructzero import flows
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

T = TypeVar("T")
Spec = JobSpec | Mapping[str, Any]
OnUpdate = Callable[[Job], None]


class Client:
    """The REST API, blocking; close it, or use it as a context manager.

    Every method raises what the same method of `AsyncClient` raises.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | SecretStr | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Prepare; no connection is made yet. See `AsyncClient`."""
        self._connection = Connection(base_url, api_key, timeout_seconds)
        self._http = httpx.Client(transport=transport, follow_redirects=False)

    def __repr__(self) -> str:
        return f"Client({self._connection!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _run(self, flow: Flow[T]) -> T:
        step = advance(flow, None)
        while not isinstance(step, Done):
            step = advance(flow, self._carry_out(step))
        return step.value

    def _carry_out(self, step: Call | Pause) -> Outcome:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.send(self._connection.request(step))
        except httpx.TransportError as error:
            return error

    def create(self, spec: Spec, *, idempotency_key: str | None = None) -> Job:
        """Create a job; safe to repeat after a broken connection, by a key of its own."""
        return self._run(flows.create(spec, idempotency_key))

    def estimate(self, spec: Spec) -> DryRun:
        """Check a spec and say what it would cost; nothing is stored."""
        return self._run(flows.estimate(spec))

    def get(
        self, job_id: str, *, wait_seconds: float | None = None, newer_than: int | None = None
    ) -> Job:
        """Return a job; wait up to `wait_seconds` (at most 60) for a version after `newer_than`."""
        return self._run(flows.get(job_id, wait_seconds, newer_than))

    def list(
        self,
        status: JobStatus | str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Return one page of jobs, newest first."""
        return self._run(flows.list_jobs(status, labels, limit, cursor))

    def cancel(self, job_id: str) -> Job:
        """End a job with what it knows."""
        return self._run(flows.steer(job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        """Stop a job from spending until it is resumed."""
        return self._run(flows.steer(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._run(flows.steer(job_id, "resume"))

    def delete(self, job_id: str) -> None:
        """Delete a finished job and all it left."""
        self._run(flows.delete(job_id))

    def wait(
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
        return self._run(flows.wait(job_id, timeout_seconds, on_update))

    def trials(self, job_id: str) -> builtins.list[TrialView]:
        """Return every instruction that was tried, in the order they were first tried."""
        return self._run(flows.trials(job_id))

    def trial(self, job_id: str, n: int) -> TrialDetail:
        """Return one trial with its answers."""
        return self._run(flows.fetch(TrialDetail, flows.read(job_id, "trials", str(n))))

    def result(self, job_id: str) -> Result:
        """Return the result document of a finished job."""
        return self._run(flows.fetch(Result, flows.read(job_id, "result")))

    def events(self, job_id: str, after: int = 0) -> builtins.list[Event]:
        """Return what happened to a job after a sequence number, oldest first."""
        return self._run(flows.events(job_id, after))

    def export(self, job_id: str, format: Literal["jsonl", "csv"] = "jsonl") -> str:
        """Return every evaluation as text."""
        return self._run(flows.export(job_id, format))

    def targets(self) -> builtins.list[TargetView]:
        """Return what a job may name as its target."""
        return self._run(flows.listing(TargetView, "/targets"))

    def generators(self) -> builtins.list[GeneratorView]:
        """Return the generator models that a job may name."""
        return self._run(flows.listing(GeneratorView, "/generators"))

    def strategies(self) -> builtins.list[StrategyView]:
        """Return the search strategies with their options."""
        return self._run(flows.listing(StrategyView, "/strategies"))

    def metrics(self) -> builtins.list[MetricView]:
        """Return the metrics that the server computes."""
        return self._run(flows.listing(MetricView, "/metrics-catalog"))

    def usage(
        self,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        group_by: str = "job",
        limit: int = 50,
        cursor: str | None = None,
    ) -> UsageReport:
        """Return what the jobs created in a period have cost, by job, target or label.KEY."""
        return self._run(flows.usage(since, until, group_by, limit, cursor))

    def version(self) -> str:
        """Return the server's version."""
        return self._run(flows.server_version())
