from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.demo.target import TargetOptions, serve_target

CHAT = "/v1/chat/completions"
Serve = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start targets; keyword arguments are their options."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> httpx.AsyncClient:
            url = await stack.enter_async_context(serve_target(TargetOptions(**options)))
            client = httpx.AsyncClient(base_url=url, timeout=10)
            return await stack.enter_async_context(client)

        yield start


def ask(text: str = "Write the antonym of the given word.", given: str = "hot", **more: Any) -> Any:
    content = f"Instruction: {text}\n\nInput: {given}\nOutput:"
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **more}


async def lines_of(log: Path, count: int) -> list[dict[str, Any]]:
    """Wait until the log has so many lines; return them."""
    async with asyncio.timeout(10):
        while len(text := _lines(log)) < count:  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)
    assert len(text) == count
    return [json.loads(line) for line in text]


def _lines(log: Path) -> list[str]:
    """Those that are written to their end."""
    return log.read_text().split("\n")[:-1]
