"""A streamed answer: written at its own pace, whether or not its reader keeps up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from instructzero.contracts import InstructionLine
from instructzero.errors import InstructZeroError
from services import web

NDJSON = "application/x-ndjson"
Lines = tuple[InstructionLine, ...]


class LineFeed:
    """Runs a request to its end in a task of its own, so that no slow reader holds the engine."""

    def __init__(self, parts: AsyncGenerator[Lines, None]) -> None:
        self._queue: asyncio.Queue[Lines | InstructZeroError | None] = asyncio.Queue()
        self._work = asyncio.create_task(self._run(parts))

    async def next(self) -> Lines | InstructZeroError | None:
        """Return what comes next: lines, the error that ends the answer, or None after the end."""
        part = await self._queue.get()
        if part is None:
            await asyncio.wait({self._work})
            if not self._work.cancelled():
                self._work.result()  # raises what is no error of ours
        return part

    def cancel(self) -> None:
        """End the work: nobody reads on."""
        self._work.cancel()

    async def encoded(self, first: Lines | None, request_id: str) -> AsyncIterator[bytes]:
        """Yield NDJSON, from what `next` gave first."""
        part: Lines | InstructZeroError | None = first
        try:
            while part is not None:
                if isinstance(part, InstructZeroError):
                    yield b'{"error":%b}\n' % bytes(web.refusal(request_id, part).body)
                    return
                yield b"".join(line.model_dump_json().encode() + b"\n" for line in part)
                part = await self.next()
        finally:
            self.cancel()

    async def _run(self, parts: AsyncGenerator[Lines, None]) -> None:
        try:
            async with aclosing(parts):
                async for part in parts:
                    self._queue.put_nowait(part)
        except InstructZeroError as error:
            self._queue.put_nowait(error)
        finally:
            self._queue.put_nowait(None)
