"""The heartbeat: renews a lease from a thread of its own, and hears what is asked of the job."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from services.optimizer import claims, meters
from services.optimizer.ledger import Signals
from services.optimizer.store import Claim

log = logging.getLogger(__name__)
SAFE_SHARE_OF_LEASE = 0.8
PATIENCE_SECONDS = 5.0
"""How long the end of a job waits for a renewal that the database does not answer."""


class Heartbeat:
    """Renews one lease from a thread of its own, so that a GP fit cannot starve it."""

    def __init__(
        self,
        engine: Engine,
        claim: Claim,
        signals: Signals,
        *,
        lease_seconds: float,
        every_seconds: float,
        on_lost: Callable[[], object],
    ) -> None:
        self._engine = engine
        self._claim = claim
        self._signals = signals
        self._lease_seconds = lease_seconds
        self._every_seconds = every_seconds
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._renewed_at(claim.claimed_at)

    def start(self) -> None:
        """Begin renewing."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop renewing and wait for the thread."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, PATIENCE_SECONDS)

    def _beat(self) -> None:
        while not self._stop.wait(self._every_seconds):
            began = time.monotonic()
            try:
                is_ours = self._renew()
            except SQLAlchemyError as error:
                log.warning("lease not renewed: %s", type(error).__name__)
                meters.UNRENEWED.inc()
                is_ours = self._signals.has_lease()
            else:
                self._renewed_at(began)
            if not is_ours:
                self._on_lost()
                return

    def _renewed_at(self, began: float) -> None:
        """Note until when money may be spent: counted from before the database heard of it."""
        self._signals.safe_until = began + SAFE_SHARE_OF_LEASE * self._lease_seconds

    def _renew(self) -> bool:
        with self._engine.begin() as connection:
            statement = claims.renew_statement(self._claim, self._lease_seconds)
            flags = connection.execute(statement).one_or_none()
        if flags is None:
            return False
        self._signals.cancel_requested, self._signals.pause_requested = flags
        return True
