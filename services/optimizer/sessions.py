"""One request, one transaction: an absent or overrun database is a 503, never a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from instructzero.errors import StoreUnavailable
from services.optimizer.database import BlockingSessionMaker, SessionMaker

RETRY_AFTER_SECONDS = 2


@asynccontextmanager
async def transaction(sessions: SessionMaker) -> AsyncIterator[AsyncSession]:
    """Open one transaction, committed at the end.

    Raises:
        StoreUnavailable: the database does not answer, or all its connections are taken.
    """
    with _as_unavailable():
        async with sessions.begin() as session:
            yield session


@contextmanager
def transaction_in_thread(sessions: BlockingSessionMaker) -> Iterator[Session]:
    """Like `transaction`, for a thread that has no event loop."""
    with _as_unavailable(), sessions.begin() as session:
        yield session


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        is_away = isinstance(error, OperationalError | InterfaceError | PoolTimeout)
        if not is_away and not getattr(error, "connection_invalidated", False):
            raise
        raise StoreUnavailable(
            f"the database does not answer ({type(error).__name__})",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        ) from error
