"""One request, one transaction: an absent or overrun database is a 503, never a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from instructzero.errors import StoreUnavailable
from services.optimizer.database import SessionMaker

RETRY_AFTER_SECONDS = 2


@asynccontextmanager
async def transaction(sessions: SessionMaker) -> AsyncIterator[AsyncSession]:
    """Open one transaction, committed at the end.

    Raises:
        StoreUnavailable: the database does not answer, or all its connections are taken.
    """
    try:
        async with sessions.begin() as session:
            yield session
    except (DBAPIError, PoolTimeout) as error:
        is_away = isinstance(error, OperationalError | InterfaceError | PoolTimeout)
        if not is_away and not getattr(error, "connection_invalidated", False):
            raise
        raise StoreUnavailable(
            f"the database does not answer ({type(error).__name__})",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        ) from error
