"""Whether a running job may go on."""

from __future__ import annotations

import math

import pytest

from instructzero.contracts import JobStatus
from instructzero.errors import LeaseLost
from services.optimizer.ledger import Signals
from services.optimizer.permission import Interrupted, Permission


def test_a_lease_that_was_in_doubt_once_ends_the_work_of_this_runner() -> None:
    signals = Signals()
    permission = Permission(signals, None, None)
    assert permission.may_buy()
    signals.safe_until = -math.inf
    assert not permission.may_buy()
    signals.safe_until = math.inf  # renewed after all: what was not bought is missing all the same
    assert not permission.may_buy()
    assert permission.is_interrupted()
    with pytest.raises(LeaseLost):
        permission.check_interruption()


def test_who_asks_the_job_to_stop_says_what_it_becomes() -> None:
    permission = Permission(Signals(pause_requested=True), None, None)
    assert not permission.may_buy()
    with pytest.raises(Interrupted) as caught:
        permission.check_interruption()
    assert caught.value.to is JobStatus.PAUSED
