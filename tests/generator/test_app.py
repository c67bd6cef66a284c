"""The service over HTTP and in process."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from instructzero.contracts import GenerateRequest
from instructzero.errors import (
    GeneratorRefused,
    GeneratorUnavailable,
    InvalidRequest,
    Overloaded,
)
from services.generator.app import create_app, create_service, open_writer
from services.generator.service import GeneratorService
from services.generator.settings import GeneratorSettings, served_name
from tests.generator.conftest import request_for, serve, settings_for
from tests.generator.test_transformers_engine import biased, forward_passes

ANYWHERE = "0.0.0.0"  # noqa: S104 - the tests see it refused
FolderOf = Callable[[str], Path]
LONG = {"max_tokens": 300, "temperature": 2.0}


@pytest.fixture
async def http(service: GeneratorService) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(GeneratorSettings(), service)
    async with serve(app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


def body_for(n_points: int = 1, **fields: Any) -> dict[str, Any]:
    return request_for(n_points, **fields).model_dump(mode="json", exclude_none=True)


async def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.002)


async def test_every_point_gets_an_instruction_in_order(http):
    together = (await http.post("/v1/instructions", json=body_for(9, features=True))).json()
    assert re.fullmatch("[0-9a-f]{64}", together["fingerprint"])
    assert len(together["instructions"]) == 9
    for i, point in enumerate(body_for(9)["points"]):
        body = {**body_for(), "points": [point], "features": True}
        answer = (await http.post("/v1/instructions", json=body)).json()
        (alone,) = answer["instructions"]
        same = together["instructions"][i]
        assert answer["fingerprint"] == together["fingerprint"]
        assert alone.pop("features") == pytest.approx(same["features"], abs=1e-4)
        assert alone == {key: value for key, value in same.items() if key != "features"}
        assert set(alone) == {"text", "tokens", "finish_reason", "rejected"}
    assert len({one["text"] for one in together["instructions"]}) > 2


async def test_a_request_twice_is_one_answer(http):
    for fields in ({}, {"temperature": 1.0, "seed": 5}):
        first, second = [
            (await http.post("/v1/instructions", json=body_for(6, **fields))).json() for _ in "ab"
        ]
        assert first == second


async def test_sampling_one_point_often_gives_several_texts(http):
    body = {**body_for(temperature=1.5), "points": [[0.1, 0.2, 0.3]] * 6}
    texts = [
        one["text"]
        for one in (await http.post("/v1/instructions", json=body)).json()["instructions"]
    ]
    assert len(set(texts)) > 3
    other = (await http.post("/v1/instructions", json={**body, "seed": 1})).json()
    assert [one["text"] for one in other["instructions"]] != texts


async def test_where_the_soft_prompt_stands_changes_texts_and_space(http):
    prefix, suffix = [
        (await http.post("/v1/instructions", json=body_for(6, soft_position=position))).json()
        for position in ("prefix", "suffix")
    ]
    assert prefix["fingerprint"] != suffix["fingerprint"]
    assert prefix["instructions"] != suffix["instructions"]


@pytest.mark.parametrize(
    "change",
    [{"exemplars": [{"input": "x", "output": "y"}]}, {"points": [[0, 0, 0]]}, {"max_tokens": 3},
     {"seed": 9}, {"tenant": "t"}, {"request_id": "other"}, {"temperature": 1.0}],
    ids=str,
)  # fmt: skip
async def test_what_is_no_part_of_the_space_leaves_the_fingerprint(http, change):
    answers = [
        (await http.post("/v1/instructions", json={**body_for(), **more})).json()
        for more in ({}, change)
    ]
    assert answers[0]["fingerprint"] == answers[1]["fingerprint"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"points": [[0.1, 0.2, 1.0000001]]}, "/points/0/2"),
        ({"points": [[0.1, 0.2]]}, ""),
        ({"points": []}, "/points"),
        ({"points": [["x", 0, 0]]}, "/points/0/0"),
        ({"exemplars": []}, "/exemplars"),
        ({"exemplars": [{"input": "a\x00", "output": "b"}]}, "/exemplars/0/input"),
        ({"surprise": 1}, "/surprise"),
        ({"model": "another"}, "/model"),
        ({"max_tokens": 0}, "/max_tokens"),
        ({"projection": {"n_tokens": 0}}, "/projection/n_tokens"),
        ({"projection": {"intrinsic_dim": 3, "scale": 0}}, "/projection/scale"),
        ({"exemplars": [{"input": "word " * 600, "output": "b"}]}, "/exemplars"),
        ({"max_tokens": 511}, "/exemplars"),
    ],
)
async def test_a_wrong_request_is_a_problem_document(http, change, pointer):
    response = await http.post("/v1/instructions", json={**body_for(), **change})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert pointer in [error["pointer"] for error in response.json()["errors"]]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '"NaN"', "null"])
async def test_a_point_that_is_no_finite_number_is_refused(http, number):
    text = json.dumps({**body_for(), "points": ["HERE"]}).replace('"HERE"', f"[{number}, 0, 0]")
    response = await http.post(
        "/v1/instructions", content=text, headers={"content-type": "application/json"}
    )
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


async def test_the_prompt_that_is_too_long_says_by_how_much(http):
    exemplars = [{"input": "word " * 600, "output": "b"}]
    problem = (
        await http.post("/v1/instructions", json={**body_for(), "exemplars": exemplars})
    ).json()
    assert problem["code"] == "prompt_too_long"
    assert "reads at most 512" in problem["detail"]


async def test_another_model_is_refused_with_those_that_are_served(http):
    names = [entry["id"] for entry in (await http.get("/v1/models")).json()["data"]]
    assert names == ["default", "llama"]
    for name in names:
        assert (await http.post("/v1/instructions", json=body_for(model=name))).is_success
    problem = (await http.post("/v1/instructions", json=body_for(model="gpt"))).json()
    assert problem["code"] == "unknown_model"
    assert "default and llama" in problem["detail"]


async def test_a_text_that_a_guard_rejects_comes_back_with_the_guards_name(http, service):
    token = service._writer.engine.tokenizer("Write", add_special_tokens=False)["input_ids"][0]
    with biased(service._writer.engine, token=token, by=1e4):
        answer = (await http.post("/v1/instructions", json=body_for())).json()
    (instruction,) = answer["instructions"]
    assert instruction["rejected"] == "repetition"
    assert instruction["finish_reason"] == "length"
    assert instruction["tokens"] == 8
    with biased(service._writer.engine, token=1, by=1e4):
        answer = (await http.post("/v1/instructions", json=body_for())).json()
    assert answer["instructions"] == [
        {"text": "", "tokens": 0, "finish_reason": "stop", "features": None, "rejected": "empty"}
    ]


async def test_the_length_cap_is_a_setting(model_folder):
    service = create_service(settings_for(model_folder("llama"), max_characters=3))
    answer = await service.generate(request_for(5))
    await service.aclose()
    assert {one.rejected for one in answer.instructions} == {"too_long"}
    assert all(len(one.text) > 3 for one in answer.instructions)


async def test_more_than_may_wait_are_told_to_come_back(model_folder):
    settings = settings_for(model_folder("llama"), max_waiting=2)
    service = create_service(settings)
    async with (
        serve(create_app(settings, service)) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        with forward_passes(service._writer.engine) as passes:
            held = [
                asyncio.create_task(client.post("/v1/instructions", json=body_for(2, **LONG)))
                for _ in range(2)
            ]
            await until(lambda: len(passes) > 2 and service._n_waiting == 2)
            refused = await client.post("/v1/instructions", json=body_for())
            assert (await client.get("/healthz")).is_success  # the event loop is free
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["code"] == "overloaded"
        done, _ = await asyncio.wait(held)
        assert [task.result().status_code for task in done] == [200, 200]
        assert (await client.post("/v1/instructions", json=body_for())).is_success
    await service.aclose()


async def test_a_deadline_ends_the_work_and_names_itself(http, service):
    with forward_passes(service._writer.engine) as passes:
        body = body_for(40, deadline_seconds=0.05, **LONG)
        response = await http.post("/v1/instructions", json=body)
        assert response.status_code == 503
        assert response.json()["code"] == "deadline_exceeded"
        assert (await http.post("/v1/instructions", json=body_for())).is_success
        assert len(passes) < 10 * 300


async def test_a_client_that_goes_away_frees_the_engine(http, service):
    with forward_passes(service._writer.engine) as passes:
        asking = asyncio.create_task(http.post("/v1/instructions", json=body_for(40, **LONG)))
        await until(lambda: len(passes) > 2)
        asking.cancel()
        await asyncio.wait({asking})
        await until(lambda: service._n_waiting == 0)
        assert (await http.post("/v1/instructions", json=body_for())).is_success
        assert len(passes) < 10 * 300


async def test_a_failure_of_the_engine_is_a_problem_without_its_words(http, service):
    with forward_passes(service._writer.engine, fail_with=RuntimeError("s3cret")):
        response = await http.post("/v1/instructions", json=body_for())
    assert response.status_code == 503
    assert response.json()["code"] == "generator_unavailable"
    assert "s3cret" not in response.text
    assert (await http.get("/readyz")).json()["parts"] == {"engine": "ok"}


async def test_exemplar_rows_are_computed_once_per_text(model_folder):
    service = create_service(settings_for(model_folder("llama"), cached_prompts=2))
    for _ in range(3):
        await service.generate(request_for(2))
    assert service._writer._halves.cache_info().misses == 1
    await service.aclose()


@pytest.mark.parametrize("position", ["prefix", "suffix"])
@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
async def test_the_prompts_rows_are_the_models_own_around_the_soft_block(
    model_folder, family, position
):
    service = create_service(settings_for(model_folder(family)))
    writer = service._writer
    request = request_for(3, soft_position=position)
    halves = writer._chat.halves(writer._meta_prompt.render(request.exemplars), position)
    prompts = writer.assemble(request)
    for prompt in prompts:
        rows = prompt.rows()
        n_head, n_soft = len(halves.head), request.projection.n_tokens
        assert rows[:n_head].equal(writer.engine.embed(halves.head))
        assert rows[n_head + n_soft :].equal(writer.engine.embed(halves.tail))
        assert rows[n_head : n_head + n_soft].equal(prompt.soft)
        assert len(rows) == len(prompt)
    assert not prompts[0].soft.equal(prompts[1].soft)
    await service.aclose()


async def test_every_route_but_the_health_checks_wants_the_token(service):
    app = create_app(GeneratorSettings(token=SecretStr("t0ken")), service)
    open_paths = {"/healthz", "/readyz", "/version"}
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        for path, method in (("/v1/instructions", "POST"), ("/v1/models", "GET")):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "t0ken"}):
                response = await client.request(method, path, json=body_for(), headers=headers)
                assert response.status_code == 401
                assert "t0ken" not in response.text
            good = {"authorization": "Bearer t0ken"}
            assert (await client.request(method, path, json=body_for(), headers=good)).is_success
        for path in open_paths:
            assert (await client.get(path)).is_success


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("IZ_GENERATOR_MODEL", "owner/name")
    monkeypatch.setenv("IZ_GENERATOR_MAX_BATCH_SIZE", "3")
    settings = GeneratorSettings()
    assert (settings.model, settings.max_batch_size) == ("owner/name", 3)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("/models/my model", "my-model"),
        ("./model", "model"),
        ("~/models/äöü", "default"),
    ],
)
def test_a_model_is_served_under_its_id_or_its_folders_name(model, name):
    assert served_name(model) == name
    assert GenerateRequest.model_validate(body_for(model=name)).model == name


async def test_in_process_the_same_answer_comes_as_over_http(http, model_folder):
    writer = open_writer(str(model_folder("llama")), settings=GeneratorSettings(max_batch_size=4))
    request = request_for(5, features=True)
    over_http = (await http.post("/v1/instructions", json=body_for(5, features=True))).json()
    in_process = await writer.generate(request)
    assert in_process.fingerprint == over_http["fingerprint"]
    assert [one.text for one in in_process.instructions] == [
        one["text"] for one in over_http["instructions"]
    ]
    assert await writer.models() == ("default",)
    await writer.aclose()


async def test_in_process_errors_are_those_of_the_http_client(model_folder):
    settings = GeneratorSettings(max_waiting=1)
    writer = open_writer(str(model_folder("llama")), name="own", settings=settings)
    assert await writer.models() == ("default", "own")
    with pytest.raises(GeneratorRefused, match="default and own"):
        await writer.generate(request_for(model="another"))
    with pytest.raises(GeneratorRefused, match="reads at most"):
        await writer.generate(request_for(max_tokens=511))
    held = asyncio.create_task(writer.generate(request_for(2, **LONG)))
    await until(lambda: writer._service._n_waiting == 1)
    with pytest.raises(GeneratorUnavailable) as caught:
        await writer.generate(request_for())
    assert isinstance(caught.value.__cause__, Overloaded)
    await held
    await writer.aclose()


async def test_closing_finishes_what_is_in_hand_and_accepts_nothing_more(model_folder):
    writer = open_writer(str(model_folder("llama")), settings=settings_for(Path()))
    held = [
        asyncio.create_task(writer.generate(request_for(2, temperature=2.0, max_tokens=60)))
        for _ in range(3)
    ]
    await until(lambda: writer._service._n_waiting == 3)
    await writer.aclose()
    assert [len((await task).instructions) for task in held] == [2, 2, 2]
    with pytest.raises(GeneratorUnavailable, match="closed"):
        await writer.generate(request_for())


def test_a_model_that_is_not_there_is_said_before_anything_is_served(tmp_path):
    with pytest.raises(InvalidRequest, match="no folder"):
        create_app(GeneratorSettings(model=str(tmp_path / "nowhere")))
    with pytest.raises(InvalidRequest, match="no folder"):
        open_writer(str(tmp_path / "nowhere"))
