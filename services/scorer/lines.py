"""The lines of one request, from those who score to the one who reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from instructzero.contracts import ScoreCondition, ScoreLine

Line = ScoreLine | ScoreCondition
Put = Callable[[Line], None]


class ScoreStream:
    """The lines of one request as they come.

    It is cancelled without an await: where the reader has gone, none would be let through.
    """

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._work: asyncio.Task[None] | None = None
        self._coming: asyncio.Future[None] | None = None

    def run(self, work: Coroutine[Any, Any, None], end: Callable[[], None]) -> None:
        """Do the work that puts the lines; `end` is called when it is over, however it ended."""

        def over(_: asyncio.Task[None]) -> None:
            end()
            self._wake()

        self._work = asyncio.create_task(work)
        self._work.add_done_callback(over)

    def put(self, line: Line) -> None:
        """Add a line."""
        self._lines.append(line)
        self._wake()

    async def next(self) -> Line | None:
        """Return the next line, None after the last or when the stream was cancelled."""
        assert self._work is not None  # noqa: S101 - a stream is run before it is read
        while not self._lines:
            if self._work.done():
                if not self._work.cancelled():
                    self._work.result()
                return None
            self._coming = asyncio.get_running_loop().create_future()
            try:
                await self._coming
            finally:
                self._coming = None
        return self._lines.pop(0)

    def cancel(self) -> None:
        """Stop scoring; what is in flight is cut off."""
        if self._work is not None:
            self._work.cancel()

    async def ended(self) -> None:
        """Wait until nothing is in flight."""
        if self._work is not None:
            await asyncio.wait({self._work})

    def _wake(self) -> None:
        if self._coming is not None and not self._coming.done():
            self._coming.set_result(None)
