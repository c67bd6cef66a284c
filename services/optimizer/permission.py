"""Whether a running job may go on: what people ask of it, its lease, and its time."""

from __future__ import annotations

import time
from dataclasses import dataclass

from instructzero.contracts import JobSpec, JobStatus
from instructzero.errors import LeaseLost
from services.optimizer.jobs import SEARCH_SHARE_OF_TIME
from services.optimizer.ledger import Signals


class Interrupted(Exception):
    """A person, or the end of this process, wants the job to leave `running` now."""

    def __init__(self, to: JobStatus) -> None:
        super().__init__(to)
        self.to = to


@dataclass
class Permission:
    """Whether the job may still buy and write: nobody interrupts it, and there is time.

    Attributes:
        is_in_doubt: the lease was not renewed in time once. What was not bought then is missing of
            a step, so this runner must not tell the step, even when the lease turns out to be kept.
    """

    signals: Signals
    search_ends_at: float | None
    ends_at: float | None
    in_final_check: bool = False
    is_in_doubt: bool = False

    @classmethod
    def open(cls, spec: JobSpec, signals: Signals, used_seconds: float) -> Permission:
        """Return the permission of a job that has run for so long, on this process's clock."""
        if spec.budget.seconds is None:
            return cls(signals, None, None)
        begun = time.monotonic() - max(used_seconds, 0.0)
        seconds = spec.budget.seconds
        return cls(signals, begun + SEARCH_SHARE_OF_TIME * seconds, begun + seconds)

    def is_interrupted(self) -> bool:
        """Whether this runner must leave the job: somebody wants it, or its lease was in doubt."""
        return self.is_in_doubt or self.signals.interruption() is not None

    def may_write(self) -> bool:
        """Whether more instructions may be generated."""
        return not self.is_interrupted()

    def may_buy(self) -> bool:
        """Whether another paid call may start."""
        if not self.signals.has_lease():
            self.is_in_doubt = True
        return not self.is_interrupted() and not self.is_late()

    def is_late(self) -> bool:
        """Whether the time for the present part of the job is over."""
        end = self.ends_at if self.in_final_check else self.search_ends_at
        return end is not None and time.monotonic() >= end

    def check_interruption(self) -> None:
        """Leave the loop if somebody wants it.

        Raises:
            Interrupted: with the status to take.
            LeaseLost: the lease was in doubt; whoever claims the job next goes on.
        """
        if self.is_in_doubt:
            raise LeaseLost("the lease was not renewed in time; the job is left to its next claim")
        if (to := self.signals.interruption()) is not None:
            raise Interrupted(to)
