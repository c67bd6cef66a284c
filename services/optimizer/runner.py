"""The runner: claim a job, keep its lease, run the loop, let go. Many jobs at a time."""

from __future__ import annotations

import asyncio
import logging
import uuid

from instructzero.contracts import JobStatus, StatusReason
from instructzero.errors import JobStopped, LeaseLost, StoreUnavailable
from services.optimizer import claims, meters, store
from services.optimizer.database import close_engine, open_sync_engine
from services.optimizer.failpoints import fail_point
from services.optimizer.heartbeat import Heartbeat
from services.optimizer.job_run import LoopDeps
from services.optimizer.ledger import Signals
from services.optimizer.loop import leave, reason_of, run_job
from services.optimizer.store import Claim

log = logging.getLogger(__name__)


class Runner:
    """Executes claimed jobs until it is told to drain."""

    def __init__(self, deps: LoopDeps, *, take_over: bool = False) -> None:
        """Prepare.

        Args:
            deps: what the loop works with.
            take_over: this process holds the lock on an embedded database, so that every other
                runner of it is dead and its leases need not run out first.
        """
        self._deps = deps
        self._take_over = take_over
        self._is_draining = False
        meters.SLOTS.set(deps.settings.jobs_at_once)
        self._wake = asyncio.Event()
        self._heartbeat_engine = open_sync_engine(deps.settings.database_url.get_secret_value())
        self.runner_id = f"runner-{uuid.uuid4().hex[:12]}"

    def drain(self) -> None:
        """Finish what is in flight, give every lease back, and let `run` return."""
        self._is_draining = True
        self._wake.set()

    async def run(self) -> None:
        """Claim and run jobs, several at a time, until drained."""
        free = asyncio.Semaphore(self._deps.settings.jobs_at_once)
        async with asyncio.TaskGroup() as group:
            while not self._is_draining:
                await free.acquire()
                claim = None if self._is_draining else await self._claim_next(None)
                if claim is None:
                    free.release()
                    await self._pause()
                    continue
                task = group.create_task(self.execute(claim))
                task.add_done_callback(lambda _: free.release())
        self.close()

    async def run_one(self, job_id: str) -> bool:
        """Run one job to its end (or until drained); return whether it could be claimed."""
        claim = await self._claim_next(job_id)
        if claim is None:
            return False
        await self.execute(claim)
        return True

    def close(self) -> None:
        """Close the heartbeats' connections."""
        close_engine(self._heartbeat_engine)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._deps.settings.poll_seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _claim_next(self, job_id: str | None) -> Claim | None:
        try:
            return await store.transact(
                self._deps.database.writes,
                lambda session: claims.claim_job(
                    session,
                    runner_id=self.runner_id,
                    lease_seconds=self._deps.settings.lease_seconds,
                    job_id=job_id,
                    take_over=self._take_over,
                ),
            )
        except StoreUnavailable as error:
            log.warning("no job claimed: %s", error.detail)
            return None

    async def execute(self, claim: Claim) -> None:
        """Run a claimed job under a heartbeat; never raises for what befell the job."""
        meters.CLAIMED.inc()
        meters.HELD.inc()
        settings = self._deps.settings
        signals = Signals(is_draining=lambda: self._is_draining)
        loop = asyncio.get_running_loop()
        work = asyncio.create_task(self._work(claim, signals))
        heartbeat = Heartbeat(
            self._heartbeat_engine,
            claim,
            signals,
            lease_seconds=settings.lease_seconds,
            every_seconds=settings.renew_every_seconds,
            on_lost=lambda: loop.call_soon_threadsafe(work.cancel),
        )
        heartbeat.start()
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=settings.renew_every_seconds)
                if not signals.has_lease():  # the heartbeat's own thread may hang in a connection
                    work.cancel()
            if work.cancelled():
                log.warning("lease lost", extra={"job_id": claim.job_id})
                meters.LOST.inc()
        except asyncio.CancelledError:  # we are cancelled, not the work
            work.cancel()
            raise
        finally:
            meters.HELD.dec()
            await heartbeat.stop()

    async def _work(self, claim: Claim, signals: Signals) -> None:
        context = {"job_id": claim.job_id, "runner_id": self.runner_id}
        log.info("job claimed", extra=context)
        try:
            fail_point("claimed")
            self._refuse_poison(claim)
            await run_job(claim, self._deps, signals)
        except LeaseLost:
            log.warning("lease lost", extra=context)
            meters.LOST.inc()
        except StoreUnavailable as error:
            log.warning("job left: %s", error.detail, extra=context)
        except JobStopped as error:
            await self._leave(claim, JobStatus.FAILED, reason_of(error))
        except Exception:
            log.exception("job interrupted by a fault of ours", extra=context)
            meters.FAULTS.inc()
            await self._leave(claim, JobStatus.QUEUED, None, is_fault=True)
        else:
            log.info("job left in order", extra=context)

    def _refuse_poison(self, claim: Claim) -> None:
        if claim.fruitless_claims > self._deps.settings.max_fruitless_claims:
            raise JobStopped(
                f"given up after {claim.fruitless_claims - 1} claims without progress; "
                "the log of the runners says why",
                reason="poison_job",
            )

    async def _leave(
        self, claim: Claim, to: JobStatus, reason: StatusReason | None, *, is_fault: bool = False
    ) -> None:
        try:
            await leave(self._deps, claim, to, reason, is_fault=is_fault)
        except (LeaseLost, StoreUnavailable) as error:
            log.warning("job not released: %s", error.detail, extra={"job_id": claim.job_id})
