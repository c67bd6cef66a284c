"""Ctrl-C and SIGTERM: the first ends in order, the second at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

INTERRUPTED = 130


class Stopper:
    """Turns the first signal into an event; the second ends the process where it stands."""

    def __init__(self, hint: str, say: Callable[[str], object] | None = None) -> None:
        """Take over both signals for the running loop.

        Args:
            hint: said at the first signal.
            say: how; on standard error, if not given.
        """
        self._hint = hint
        self._say = say or _write
        self._asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

    @property
    def is_asked(self) -> bool:
        """Whether somebody wants the process to end."""
        return self._asked.is_set()

    async def wait(self) -> None:
        """Return at the first signal."""
        await self._asked.wait()

    def _on_signal(self) -> None:
        if self._asked.is_set():
            os._exit(INTERRUPTED)  # what was paid for is on disk already
        self._say(self._hint)
        self._asked.set()


def _write(hint: str) -> None:
    sys.stderr.write(f"\n{hint}\n")
    sys.stderr.flush()
