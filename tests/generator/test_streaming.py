"""Answers that come line by line: from the service, and as the runner's client reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from instructzero.contracts import FailureLine, GenerateResponse, InstructionLine
from instructzero.errors import GeneratorRefused, GeneratorUnavailable
from services.generator.app import create_app
from services.generator.service import GeneratorService
from services.generator.settings import GeneratorSettings
from services.optimizer.clients import HttpGenerator
from tests.generator.conftest import request_for, serve
from tests.generator.test_app import LONG, until
from tests.generator.test_transformers_engine import forward_passes

NDJSON = "application/x-ndjson"
AS_LINES = {"accept": NDJSON}


@pytest.fixture
async def url(service: GeneratorService) -> AsyncIterator[str]:
    async with serve(create_app(GeneratorSettings(), service)) as url:
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[HttpGenerator]:
    client = HttpGenerator(url, in_flight=2)
    try:
        yield client
    finally:
        await client.aclose()


def body_for(n_points, **fields):
    return request_for(n_points, **fields).model_dump(mode="json", exclude_none=True)


async def test_the_lines_hold_what_the_document_holds(http):
    body = body_for(9, features=True)
    document = await http.post("/v1/instructions", json=body)
    stream = await http.post("/v1/instructions", json=body, headers=AS_LINES)
    assert stream.headers["content-type"].startswith(NDJSON)
    lines = [InstructionLine.model_validate_json(text) for text in stream.text.splitlines()]
    answer = GenerateResponse.of(lines, n_points=9)
    assert answer == GenerateResponse.model_validate_json(document.content)


async def test_a_line_comes_before_the_others_are_written(http, service):
    with forward_passes(service._writer.engine) as passes:
        # Four side by side, so forty take ten times as long as the first.
        asked = http.stream("POST", "/v1/instructions", json=body_for(40, **LONG), headers=AS_LINES)
        async with asked as response:
            first = await anext(response.aiter_lines())
            assert InstructionLine.model_validate_json(first).point < 4
            assert len(passes) < 5 * 300
        await until(lambda: service._n_waiting == 0)  # the client is gone
        assert len(passes) < 8 * 300


async def test_what_is_refused_has_its_own_status_in_both_forms(http):
    for change in ({"model": "another"}, {"points": []}, {"max_tokens": 511}):
        body = {**body_for(2), **change}
        plain = await http.post("/v1/instructions", json=body)
        lines = await http.post("/v1/instructions", json=body, headers=AS_LINES)
        assert lines.status_code == plain.status_code == 422
        assert lines.headers["content-type"] == "application/problem+json"
        assert lines.json()["code"] == plain.json()["code"]


async def test_what_breaks_off_says_why_in_its_last_line(http, service):
    with forward_passes(service._writer.engine):
        body = body_for(1000, deadline_seconds=0.5, max_tokens=8)
        response = await http.post("/v1/instructions", json=body, headers=AS_LINES)
    assert response.status_code == 200
    *lines, last = response.text.splitlines()
    assert 0 < len(lines) < 1000
    assert FailureLine.model_validate_json(last).error.code == "deadline_exceeded"
    assert (await http.post("/v1/instructions", json=body_for(1))).is_success


async def test_the_runners_client_reads_the_lines(url, service):
    request = request_for(9, features=True)
    async with client_of(url) as client:
        assert await client.generate(request) == await service.generate(request)


async def test_the_runners_client_says_whether_a_retry_can_help(url, service):
    async with client_of(url) as client:
        with pytest.raises(GeneratorRefused, match="this generator serves"):
            await client.generate(request_for(model="another"))
        with pytest.raises(GeneratorUnavailable, match="deadline_exceeded"):
            await client.generate(request_for(1000, deadline_seconds=0.5))
        with (
            forward_passes(service._writer.engine, fail_with=RuntimeError("shapes")),
            pytest.raises(GeneratorUnavailable, match="the engine failed"),
        ):
            await client.generate(request_for(1))


def line(point, *, fingerprint="f"):
    instruction = {"text": f"text {point}"}
    return json.dumps({"point": point, "fingerprint": fingerprint, "instruction": instruction})


@asynccontextmanager
async def stand_in(lines: Sequence[str]) -> AsyncIterator[str]:
    """Another server of the same contract, that answers with these lines."""
    app = FastAPI()

    async def written():
        for text in lines:
            yield text + "\n"

    @app.post("/v1/instructions")
    async def create():
        return StreamingResponse(written(), media_type=NDJSON)

    async with serve(app) as url:
        yield url


async def test_lines_may_come_in_any_order():
    async with stand_in([line(2), line(0), line(1)]) as url, client_of(url) as client:
        answer = await client.generate(request_for(3))
    assert [each.text for each in answer.instructions] == ["text 0", "text 1", "text 2"]


async def test_only_a_newline_ends_a_line():
    text = "One.\u2028Two.\x85Three."  # ends of lines to Unicode, and allowed in JSON as they are
    content = {"point": 0, "fingerprint": "f", "instruction": {"text": text}}
    lines = [json.dumps(content, ensure_ascii=False), ""]
    async with stand_in(lines) as url, client_of(url) as client:
        answer = await client.generate(request_for(1))
    assert answer.instructions[0].text == text


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([line(0), line(1)], GeneratorUnavailable),
        ([], GeneratorUnavailable),
        ([line(0), line(0), line(1)], GeneratorRefused),
        ([line(0), line(1), line(7)], GeneratorRefused),
        ([line(0), line(1), line(2, fingerprint="g")], GeneratorRefused),
        ([line(0), "nonsense"], GeneratorRefused),
    ],
    ids=["cut short", "nothing", "twice", "another point", "another space", "no line"],
)
async def test_a_stream_that_is_not_whole_is_no_answer(lines, error):
    async with stand_in(lines) as url, client_of(url) as client:
        with pytest.raises(error):
            await client.generate(request_for(3))


async def test_a_server_without_lines_answers_at_once_and_names_its_pause():
    app = FastAPI()
    busy = [True]

    @app.post("/v1/instructions")
    async def create():
        if busy:
            busy.clear()
            return JSONResponse({"detail": "full"}, 429, {"retry-after": "7"})
        return {"fingerprint": "f", "instructions": [{"text": "Say it."}]}

    async with serve(app) as url, client_of(url) as client:
        with pytest.raises(GeneratorUnavailable) as caught:
            await client.generate(request_for(1))
        assert caught.value.retry_after_seconds == 7
        assert (await client.generate(request_for(1))).instructions[0].text == "Say it."


async def test_a_reader_that_stalls_holds_no_place(url, service):
    """The work ends at its own pace, whoever reads it."""
    body = json.dumps(body_for(300, max_tokens=8)).encode()
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    head = (
        f"POST /v1/instructions HTTP/1.1\r\nhost: {host}\r\naccept: {NDJSON}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await reader.read(1)
    await until(lambda: service._n_waiting == 0)
    writer.close()
