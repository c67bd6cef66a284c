"""Serving over HTTP: the port is taken first, and a signal lets everything end in order."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from instructzero.errors import InvalidRequest
from services.commands.console import Screen
from services.commands.signals import Stopper

if TYPE_CHECKING:
    from fastapi import FastAPI

    from services.commands.connection import Local
    from services.embedded import Options
    from services.optimizer.runner_main import RunnerProcess

DRAIN_SECONDS = 20
BACKLOG = 4096
STOPPING = "Stopping in order: running calls end, jobs are given back. Ctrl-C again quits at once."


class QuietServer(uvicorn.Server):
    """A server that leaves the signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take over nothing."""
        yield


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str
    port: int


def bind(address: Address, *, option: str = "--port") -> socket.socket:
    """Take a port before anything slow begins.

    Raises:
        InvalidRequest: it is in use, or not ours to take.
    """
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InvalidRequest(f"there is no address {address.host} on this machine") from error
    family, kind, protocol, _, where = found
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidRequest(_why(address, error, option), reason="port_unavailable") from error
    return listener


def _why(address: Address, error: OSError, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {address.port} is in use; give another one with {option}"
    if error.errno == errno.EACCES:
        return f"port {address.port} needs more rights; give one above 1023 with {option}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine has no address {address.host}"
    return f"cannot listen on {address.host} port {address.port}: {error.strerror}"


def url_of(listener: socket.socket) -> str:
    """Return the address that a listener is reached at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def listen(
    app: FastAPI,
    listener: socket.socket,
    stopper: Stopper | asyncio.Event,
    *,
    drain_seconds: float = DRAIN_SECONDS,
    heeds_proxy: bool = True,
) -> None:
    """Serve until the first signal, then finish what was accepted.

    What needs no caller's address and writes no URL need not heed a proxy's headers about them.
    """
    config = uvicorn.Config(
        app,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(drain_seconds),
        timeout_keep_alive=30,
        server_header=False,
        proxy_headers=heeds_proxy,
    )
    server = QuietServer(config)

    async def stop() -> None:
        await stopper.wait()
        end_waits = getattr(app.state, "end_waits", None)
        if end_waits is not None:
            end_waits()  # requests that wait for a job would hold the server for a minute
        server.should_exit = True

    stopping = asyncio.create_task(stop())
    try:
        await server.serve(sockets=[listener])
    finally:
        stopping.cancel()


@dataclass(frozen=True)
class ServeRequest:
    """What `serve` was asked to do."""

    options: Options
    address: Address
    with_runner: bool = True


async def serve_all(request: ServeRequest, screen: Screen) -> None:
    """Serve the API, and run its jobs, until a signal.

    Raises:
        InvalidRequest: an address without a key, a port in use, wrong targets or model.
        Conflict: another process runs jobs on this SQLite file.
    """
    from services.commands.connection import open_local
    from services.embedded import create_api
    from services.optimizer.auth import check_exposure
    from services.optimizer.settings import Settings

    check_exposure(request.address.host, Settings())
    stopper = Stopper(STOPPING, screen.stopping)
    with bind(request.address) as listener:
        if request.with_runner and request.options.generator_url is None:
            screen.say(f"Loading the generator model ({request.options.model}) …")
        async with open_local(request.options, with_runner=request.with_runner) as local:
            if stopper.is_asked:
                return
            _welcome(request, local, url_of(listener), screen)
            async with asyncio.TaskGroup() as group:
                if local.parts.runner is not None:
                    group.create_task(local.parts.runner.run())
                    group.create_task(_drain(local, stopper))
                group.create_task(listen(create_api(local.parts), listener, stopper))
    screen.say("Stopped in order.")


async def _drain(local: Local, stopper: Stopper) -> None:
    await stopper.wait()
    if local.parts.runner is not None:
        local.parts.runner.drain()


def _welcome(request: ServeRequest, local: Local, url: str, screen: Screen) -> None:
    screen.say(f"Serving on {url} (described at {url}/openapi.json)", style="bold")
    screen.say(f"Jobs are kept in {shown_database(request.options.database)}")
    if local.serves_demo:
        screen.say("No --targets file: jobs may use the target `demo`, the bundled model")
    if not request.with_runner:
        screen.say("No runner here: queued jobs wait for `instructzero runner`")


def shown_database(raw: str) -> str:
    """Return a database's address without its password."""
    from sqlalchemy import make_url

    return make_url(raw).render_as_string(hide_password=True) if "://" in raw else raw


async def serve_app(
    app: FastAPI,
    listener: socket.socket,
    name: str,
    screen: Screen,
    *,
    drain_seconds: float = DRAIN_SECONDS,
) -> None:
    """Serve one part of a cluster until a signal."""
    stopper = Stopper(STOPPING, screen.stopping)
    screen.say(f"{name} on {url_of(listener)}", style="bold")
    await listen(app, listener, stopper, drain_seconds=drain_seconds, heeds_proxy=False)
    screen.say("Stopped in order.")


async def serve_runner(
    opened: AbstractAsyncContextManager[RunnerProcess],
    listener: socket.socket | None,
    screen: Screen,
) -> None:
    """Run jobs until a signal, then finish what is in flight; tell how it goes on a port, if any.

    Raises:
        InvalidRequest: the database cannot be used.
    """
    stopper, drained = Stopper(STOPPING, screen.stopping), asyncio.Event()

    async def run() -> None:
        try:
            await process.runner.run()
        finally:
            drained.set()  # until here the port answers: a drain is watched too

    async with opened as process, asyncio.TaskGroup() as group:
        if listener is not None:
            screen.say(f"Runner's health and figures on {url_of(listener)}", style="bold")
            group.create_task(listen(process.probes, listener, drained))
        stopping = group.create_task(stopper.wait())
        stopping.add_done_callback(lambda _: process.runner.drain())
        await run()
        stopping.cancel()
    screen.say("Stopped in order.")
