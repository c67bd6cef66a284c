"""Landscapes behind the product's own protocols: a generator and a target over HTTP, in a process.

A job names its landscape, `easy/300000`, in the first exemplar and in every input. The generator
maps a point to `text 17`; the target reads text and example off the prompt and answers right or
wrong. Calls are counted where they arrive.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from aiohttp import web

from benchmarks.landscapes import SPECS, Landscape

N_VALIDATION, N_TEST = 100, 100
_TEXT = re.compile(r"text (\d+)")
_INPUT = re.compile(r"(\w+/\d+) example (\d+)")


@lru_cache(maxsize=64)
def landscape_of(key: str) -> Landscape:
    """Return the landscape that a key names, with examples for validation and test."""
    kind, _, seed = key.partition("/")
    return Landscape(replace(SPECS[kind], n_validation=N_VALIDATION + N_TEST), int(seed))


def task_of(key: str) -> dict[str, Any]:
    """Return the task of a job on this landscape."""
    examples = [
        {"input": f"{key} example {j}", "output": f"right {j}"}
        for j in range(N_VALIDATION + N_TEST)
    ]
    return {
        "exemplars": [{"input": key, "output": "landscape"}],
        "validation": examples[:N_VALIDATION],
        "test": examples[N_VALIDATION:],
    }


def text_number(instruction: str) -> int | None:
    """Return the landscape's text that an instruction stands for."""
    found = _TEXT.search(instruction)
    return int(found[1]) if found else None


@contextmanager
def landscape_server() -> Iterator[str]:
    """Run the server; yield its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that a server that does not start is noticed
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _main(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


async def _write(request: web.Request) -> web.Response:
    asked = await request.json()
    texts = landscape_of(asked["exemplars"][0]["input"]).text_of(np.array(asked["points"]))
    written = [{"text": f"text {text}", "tokens": 2, "finish_reason": "stop"} for text in texts]
    return web.json_response({"fingerprint": "landscapes", "instructions": written})


async def _answer(request: web.Request) -> web.Response:
    prompt = (await request.json())["messages"][-1]["content"]
    asked = _INPUT.search(prompt)
    if asked is None:
        raise web.HTTPBadRequest(text="no example of a landscape in the prompt")
    request.app[_CALLS][asked[1]] += 1
    text = text_number(prompt)
    answer = "none" if text is None else landscape_of(asked[1]).answer(text, int(asked[2]))
    message = {"role": "assistant", "content": answer}
    return web.json_response(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "landscapes",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22},
        }
    )


async def _calls(request: web.Request) -> web.Response:
    return web.json_response(request.app[_CALLS])


_CALLS = web.AppKey("calls", Counter)


async def _serve(pipe: Connection) -> None:
    app = web.Application(client_max_size=2**24)
    app[_CALLS] = Counter()
    app.router.add_post("/v1/instructions", _write)
    app.router.add_post("/v1/chat/completions", _answer)
    app.router.add_get("/calls", _calls)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    pipe.send(runner.addresses[0][1])
    await asyncio.Event().wait()
