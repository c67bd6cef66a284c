"""A wire between a runner and Postgres that a test can cut, at a commit for instance, or clog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

from sqlalchemy import make_url

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


class Fate(Enum):
    """What becomes of a commit."""

    DONE = "it arrives, and so does its answer"
    UNSEEN = "it arrives, its answer does not"
    LOST = "it does not arrive"


@dataclass
class Wire:
    """Forwards bytes; `fate` decides over each commit by its number."""

    socket: str
    fate: Callable[[int], Fate] = lambda _: Fate.DONE
    n_commits: int = 0
    n_cut: int = 0
    is_open: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self.socket)
        answers = asyncio.create_task(self._forward(there_reader, writer))
        try:
            while data := await reader.read(65536):
                await self.is_open.wait()
                fate = Fate.DONE
                if COMMIT in data:
                    self.n_commits += 1
                    fate = self.fate(self.n_commits)
                if fate is not Fate.DONE:
                    self.n_cut += 1
                    answers.cancel()
                if fate is not Fate.LOST:
                    there_writer.write(data)
                    await there_writer.drain()
                if fate is Fate.UNSEEN:
                    await there_reader.read(1)  # the server has answered: it is committed
                if fate is not Fate.DONE:
                    return
        except ConnectionError:
            return
        finally:
            answers.cancel()
            for end in (writer, there_writer):
                end.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self.is_open.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def wire_to(url: str, fate: Callable[[int], Fate]) -> AsyncIterator[tuple[Wire, str]]:
    """Yield a wire to a Postgres behind a unix socket, and the URL of its other end."""
    parsed = make_url(url)
    wire = Wire(f"{parsed.query['host']}/.s.PGSQL.{parsed.port or 5432}", fate)
    wire.is_open.set()
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    through = parsed.set(host="127.0.0.1", port=port, query={"sslmode": "disable"})
    try:
        yield wire, through.render_as_string(hide_password=False)
    finally:
        server.close()
