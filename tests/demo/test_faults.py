import json

import httpx
import pytest

from instructzero.errors import InvalidRequest
from services.demo.faults import Fault, FaultPlan, parse_fault
from tests.demo.conftest import CHAT, ask, lines_of


def test_a_fault_is_read():
    assert parse_fault("500=0.25") == ("500", 0.25)
    assert parse_fault("429_no_hint=1") == ("429_no_hint", 1.0)


@pytest.mark.parametrize("text", ["", "500", "500=", "500=2", "500=-1", "500=nan", "404=0.1", "=1"])
def test_a_fault_that_makes_no_sense_is_refused_with_advice(text):
    with pytest.raises(InvalidRequest, match=r"KIND=RATE|no such fault|from 0 to 1"):
        parse_fault(text)


def test_rates_may_not_sum_to_more_than_one():
    with pytest.raises(InvalidRequest, match="may not exceed 1"):
        FaultPlan({"500": 0.7, "cut": 0.4}, seed=0)


def test_the_plan_depends_on_seed_and_number_and_keeps_its_rates():
    rates = {"500": 0.2, "429": 0.1}
    plan = [FaultPlan(rates, seed=1).of(n) for n in range(1, 4001)]
    assert plan == [FaultPlan(rates, seed=1).of(n) for n in range(1, 4001)]
    assert plan != [FaultPlan(rates, seed=2).of(n) for n in range(1, 4001)]
    assert plan.count(Fault.SERVER_ERROR) / 4000 == pytest.approx(0.2, abs=0.03)
    assert plan.count(Fault.RATE_LIMITED) / 4000 == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "status", "code", "has_hint"),
    [
        ("429", 429, "rate_limit_exceeded", True),
        ("429_no_hint", 429, "rate_limit_exceeded", False),
        ("500", 500, None, False),
        ("503", 503, "overloaded", False),
        ("quota", 429, "insufficient_quota", False),
    ],
)
async def test_a_refusal_on_request(serve, tmp_path, kind, status, code, has_hint):
    log = tmp_path / "log.jsonl"
    client = await serve(faults={kind: 1.0}, log=log)
    response = await client.post(CHAT, json=ask())
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert ("retry-after" in response.headers) == has_hint
    (line,) = await lines_of(log, 1)
    assert (line["status"], line["fault"], line["answer"]) == (status, kind, None)


async def test_a_broken_body_is_half_a_document(serve):
    client = await serve(faults={"broken_body": 1.0})
    response = await client.post(CHAT, json=ask())
    assert response.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        response.json()


async def test_a_cut_body_ends_in_a_closed_connection_and_is_logged(serve, tmp_path):
    log = tmp_path / "log.jsonl"
    client = await serve(faults={"cut": 1.0}, log=log)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post(CHAT, json=ask())
    (line,) = await lines_of(log, 1)
    assert (line["status"], line["fault"], line["answer"]) == (200, "cut", None)


async def test_an_empty_answer_has_no_content(serve):
    client = await serve(faults={"empty": 1.0})
    (choice,) = (await client.post(CHAT, json=ask())).json()["choices"]
    assert choice["message"]["content"] is None


async def test_a_filtered_answer_says_so(serve):
    client = await serve(faults={"filter": 1.0})
    (choice,) = (await client.post(CHAT, json=ask())).json()["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == ""


async def test_a_slow_body_trickles_and_is_logged_when_the_client_leaves(serve, tmp_path):
    log = tmp_path / "log.jsonl"
    client = await serve(faults={"slow": 1.0}, log=log)
    async with client.stream("POST", CHAT, json=ask()) as response:
        assert response.status_code == 200
        pieces = response.aiter_raw()
        first, second = await anext(pieces), await anext(pieces)
        assert len(first + second) < int(response.headers["content-length"])
    (line,) = await lines_of(log, 1)
    assert line["fault"] == "slow"


async def test_a_timeout_never_answers_and_is_logged_when_the_client_leaves(serve, tmp_path):
    log = tmp_path / "log.jsonl"
    client = await serve(faults={"timeout": 1.0}, log=log, in_flight=1)
    for _ in range(2):  # the place in flight is free again
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json=ask(), timeout=0.3)
        await lines_of(log, _ + 1)
    lines = await lines_of(log, 2)
    assert [line["status"] for line in lines] == [499, 499]
    assert [line["request"] for line in lines] == [1, 2]


async def test_only_the_drawn_requests_fail(serve, tmp_path):
    log = tmp_path / "log.jsonl"
    client = await serve(faults={"500": 0.4}, seed=7, log=log)
    statuses = [(await client.post(CHAT, json=ask())).status_code for _ in range(30)]
    plan = FaultPlan({"500": 0.4}, seed=7)
    assert statuses == [500 if plan.of(n) else 200 for n in range(1, 31)]
    assert 500 in statuses
    assert 200 in statuses
