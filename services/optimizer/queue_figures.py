"""The figures of the whole queue, read from the database when Prometheus asks a process."""

from __future__ import annotations

import asyncio
import logging
import math

from instructzero.errors import StoreUnavailable
from services.optimizer import meters, reads
from services.optimizer.database import Database
from services.optimizer.sessions import transaction

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 3.0
UNKNOWN = reads.Queue(math.nan, math.nan, math.nan, math.nan)


async def read_queue(database: Database) -> None:
    """Set the gauges of the queue; without a database they are not a number, and it is said."""
    queue = UNKNOWN
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), transaction(database.reads) as session:
            queue = await reads.read_queue(session)
    except (StoreUnavailable, TimeoutError, OSError) as error:
        log.warning("no figures of the queue: %s", type(error).__name__)
    meters.DATABASE_UP.set(queue is not UNKNOWN)
    meters.JOBS.labels("queued").set(queue.queued)
    meters.JOBS.labels("running").set(queue.running)
    meters.EXPIRED.set(queue.expired_leases)
    meters.QUEUE_AGE.set(queue.age_seconds)
