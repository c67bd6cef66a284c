"""The lines of one request, from those who score to the one who reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from instructzero.contracts import ScoreCondition, ScoreLine
from services.scorer.conditions import Condition

Line = ScoreLine | ScoreCondition
Put = Callable[[Line], None]


class ScoreStream:
    """The lines of one request as they come.

    It is cancelled without an await: where the reader has gone, none would be let through.
    """

    __slots__ = ("_end", "_lines", "_tell", "_work")

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._work: asyncio.Task[None] | None = None
        self._end: Callable[[], None] | None = None
        self._tell: Callable[[], None] | None = None

    def run(self, work: Coroutine[Any, Any, None], end: Callable[[], None]) -> None:
        """Do the work that puts the lines; `end` is called when it is over, however it ended."""
        self._end = end
        self._work = asyncio.create_task(work)
        self._work.add_done_callback(self._over)

    def put(self, line: Line) -> None:
        """Add a line."""
        self._lines.append(line)
        if self._tell is not None:
            self._tell()

    def put_condition(self, condition: Condition | None) -> None:
        """Add what is waited for."""
        self.put(ScoreCondition(condition=condition))

    def tell(self, tell: Callable[[], None] | None) -> None:
        """Set what is called when there is a line, or no line will come any more."""
        self._tell = tell
        if tell is not None and (self._lines or self.is_over):
            tell()

    def take(self) -> Line | None:
        """Return the next line, None where there is none yet, or no more."""
        return self._lines.pop(0) if self._lines else None

    @property
    def is_over(self) -> bool:
        """Whether no line will be put any more."""
        return self._work is not None and self._work.done()

    def check(self) -> None:
        """Raise what the work has raised, once it is over; a cancelled one has raised nothing."""
        if self._work is not None and self.is_over and not self._work.cancelled():
            self._work.result()

    async def next(self) -> Line | None:
        """Return the next line, None after the last or when the stream was cancelled."""
        while not self._lines and not self.is_over:
            news = asyncio.Event()
            self.tell(news.set)
            try:
                await news.wait()
            finally:
                self.tell(None)
        if not self._lines:
            self.check()
        return self.take()

    def cancel(self) -> None:
        """Stop scoring; what is in flight is cut off."""
        if self._work is not None:
            self._work.cancel()

    async def ended(self) -> None:
        """Wait until nothing is in flight."""
        if self._work is not None:
            await asyncio.wait({self._work})

    def _over(self, _: asyncio.Task[None]) -> None:
        if self._end is not None:
            self._end()
        if self._tell is not None:
            self._tell()
