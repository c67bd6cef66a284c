"""A judge that is much dearer than the target cannot take a job over its budget."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from instructzero.contracts import Example, ScoreExample, TargetView
from services.optimizer.jobs import Connections, worst_call
from services.scorer.judge import judge_messages
from tests.optimizer.worlds import make_spec
from tests.scorer.conftest import PoolMaker
from tests.scorer.fake_target import FakeTarget, Seen, completion
from tests.scorer.jobs import open_jobs

PRICES = {"fake": (0.1, 0.2), "judge": (30.0, 60.0)}
"""US dollars per million tokens: prompt, completion."""
MAX_TOKENS = {"fake": 16, "judge": 64}
METRIC = {"name": "judge", "target": "judge", "rubric": "10 for the input repeated."}


class Till:
    """Charges every request as a provider that counts one token a byte."""

    def __init__(self) -> None:
        self.usd = 0.0
        self.tokens = 0
        self.calls = 0

    async def respond(self, seen: Seen, _: web.Request) -> web.Response:
        name = seen.body["model"]
        text = '{"grade": 7}' if name == "judge" else "an answer that fills its room " * 9
        used = {
            "prompt_tokens": sum(len(m["content"].encode()) for m in seen.body["messages"]) + 8,
            "completion_tokens": MAX_TOKENS[name],
        }
        into, out = PRICES[name]
        self.usd += (used["prompt_tokens"] * into + used["completion_tokens"] * out) / 1e6
        self.tokens += sum(used.values())
        self.calls += 1
        return completion(text, usage=used)


def connection(name: str) -> dict[str, Any]:
    into, out = PRICES[name]
    return {
        "model": name,
        "price": {"input_per_million": into, "output_per_million": out},
        "sampling": {"max_tokens": MAX_TOKENS[name]},
        "limits": {"in_flight": 4},
    }


@pytest.mark.parametrize("budget", [{"usd": 0.9}, {"tokens": 60_000}], ids=["usd", "tokens"])
async def test_what_a_judge_costs_is_reserved_before_it_is_asked(
    make_pool: PoolMaker, target: FakeTarget, sqlite_url: str, budget: dict[str, float]
) -> None:
    till = Till()
    target.respond = till.respond
    pool = make_pool(more={"judge": connection("judge")}, **connection("fake"))
    async with open_jobs(sqlite_url, pool) as jobs:
        row = await jobs.run(metric=METRIC, budget=budget)
    assert row.status == "succeeded", row.status_reason
    assert row.calls == till.calls > 20
    assert row.prompt_tokens + row.completion_tokens == till.tokens
    assert row.usd == pytest.approx(till.usd)
    assert till.usd <= budget.get("usd", 1e9)
    assert till.tokens <= budget.get("tokens", 1e9)
    assert row.result is not None
    assert row.result["usage"]["usd"] == pytest.approx(till.usd)


@given(
    answer=st.text(max_size=300),
    asked=st.text(min_size=1, max_size=60),
    outputs=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4),
    rubric=st.text(min_size=1, max_size=60),
)
def test_a_judges_prompt_is_never_longer_than_what_was_reserved_for_it(
    answer: str, asked: str, outputs: list[str], rubric: str
) -> None:
    free = TargetView(name="fake", model="m", limits={}, price=None, max_tokens=16)
    spec = make_spec().model_copy(
        update={"metric": make_spec(metric=METRIC).metric.model_copy(update={"rubric": rubric})}
    )
    example = Example.model_construct(input=asked, output=tuple(outputs))
    shown = ScoreExample.model_construct(id="0", input=asked, outputs=tuple(outputs))
    messages = judge_messages(rubric, shown, answer, max_tokens=16)
    bound = worst_call(spec, Connections(free, free), "", example).tokens - free.max_tokens
    assert sum(len(message["content"].encode()) for message in messages) <= bound
