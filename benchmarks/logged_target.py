"""A target in a process of its own that answers after a fixed time and remembers what it was sent.

It is as cheap as a server can be, so that what is measured is the caller. The text it answers with
does not matter; the first word of the instruction says which job a call belongs to.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import NamedTuple

import httpx
from aiohttp import web

PROMPT_TOKENS, COMPLETION_TOKENS = 60, 20


class Call(NamedTuple):
    """One call as the target saw it."""

    at: float
    job: str
    tokens: int


class LoggedTarget(NamedTuple):
    """Where the target is reached."""

    base_url: str

    def calls(self) -> list[Call]:
        """Return every call so far."""
        return [Call(*row) for row in httpx.get(f"{self.base_url}/log", timeout=60).json()]


@contextmanager
def logged_target(latency_seconds: float) -> Iterator[LoggedTarget]:
    """Run the target."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, latency_seconds), daemon=True)
    process.start()
    theirs.close()  # so that a target that does not start is noticed
    try:
        yield LoggedTarget(f"http://127.0.0.1:{ours.recv()}/v1")
    finally:
        process.terminate()
        process.join()


def _main(pipe: Connection, latency_seconds: float) -> None:
    asyncio.run(_serve(pipe, latency_seconds))


async def _serve(pipe: Connection, latency_seconds: float) -> None:
    log: list[Call] = []
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    }
    message = {"role": "assistant", "content": "right"}
    content = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "logged",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": usage,
    }
    body = json.dumps(content).encode()

    async def complete(request: web.Request) -> web.Response:
        at = time.time()
        asked = json.loads(await request.read())
        text = asked["messages"][-1]["content"]
        job = text.removeprefix("Instruction: ").partition(" ")[0]
        log.append(Call(at, job, PROMPT_TOKENS + COMPLETION_TOKENS))
        await asyncio.sleep(latency_seconds)
        return web.Response(body=body, content_type="application/json")

    async def show(_: web.Request) -> web.Response:
        return web.json_response(log)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/log", show)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    pipe.send(runner.addresses[0][1])
    await asyncio.Event().wait()
