"""A small OpenAI-shaped server whose every answer a test decides; it logs what it was sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Respond = Callable[["Seen", web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """One request as the target saw it."""

    number: int
    at: float
    text: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class FakeTarget:
    """Answers with `respond`; counts what is in flight."""

    respond: Respond | None = None
    latency: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    n_answered: int = 0
    base_url: str = ""
    usage: Any = None

    @property
    def n_requests(self) -> int:
        return len(self.seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        text = body["messages"][-1]["content"]
        seen = Seen(len(self.seen), time.time(), text, body, dict(request.headers))
        self.seen.append(seen)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            response = await (self.respond or answer)(seen, request)
            self.n_answered += response.status == 200
            return response
        finally:
            self.in_flight -= 1


async def answer(seen: Seen, _: web.Request) -> web.Response:
    return completion(seen.text.rsplit("Input: ", 1)[-1].removesuffix("\nOutput:"))


def completion(
    text: str | None,
    *,
    finish: str = "stop",
    usage: Any = None,
    headers: dict[str, str] | None = None,
    **message: Any,
) -> web.Response:
    content = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "usage": usage or {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    return web.json_response(content, headers=headers)


def error(
    status: int, code: str = "", message: str = "no", headers: dict[str, str] | None = None
) -> web.Response:
    body = {"error": {"message": message, "type": code, "code": code}}
    return web.json_response(body, status=status, headers=headers)


async def list_models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": []})


@asynccontextmanager
async def serve_fake(target: FakeTarget, port: int = 0) -> AsyncIterator[FakeTarget]:
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", target.handle)
    app.router.add_get("/v1/models", list_models)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    port = runner.addresses[0][1]
    target.base_url = f"http://127.0.0.1:{port}/v1"
    try:
        yield target
    finally:
        await runner.cleanup()
