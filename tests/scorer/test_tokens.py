"""Runner, scorer and generator with tokens between them, over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import pytest
from aiohttp import web
from pydantic import SecretStr

from instructzero.contracts import GenerateRequest, InstructionLine
from instructzero.errors import ScorerNotReached, ScorerRefused, ScorerUnavailable
from services.generator.api import build_app
from services.generator.settings import GeneratorSettings
from services.optimizer.clients import HttpGenerator, HttpScorer
from tests.optimizer.worlds import PlainGenerator
from tests.scorer.conftest import FAST, PoolMaker, collect, request_for, serve, serve_scorer
from tests.scorer.fake_target import FakeTarget
from tests.scorer.jobs import open_jobs

TOKEN = SecretStr("t0ken-of-the-service")
SETTINGS = FAST.model_copy(update={"token": TOKEN})


class PlainService(PlainGenerator):
    """A generator as the routes want it."""

    def names(self) -> tuple[str, ...]:
        return ("default",)

    async def states(self) -> Mapping[str, str]:
        return {"model": "ok"}

    async def stream(
        self, request: GenerateRequest
    ) -> AsyncGenerator[tuple[InstructionLine, ...], None]:
        written = await self.generate(request)
        yield tuple(
            InstructionLine(point=place, fingerprint=written.fingerprint, instruction=instruction)
            for place, instruction in enumerate(written.instructions)
        )


@pytest.mark.parametrize("wrong", [None, "scorer", "generator"])
async def test_a_job_runs_with_the_right_tokens_and_says_which_one_is_wrong(
    make_pool: PoolMaker, target: FakeTarget, sqlite_url: str, wrong: str | None
) -> None:
    sent = {
        name: SecretStr("another") if name == wrong else TOKEN for name in ("scorer", "generator")
    }
    app = build_app(GeneratorSettings(token=TOKEN), PlainService())
    async with serve_scorer(make_pool(), SETTINGS) as scorer_url, serve(app) as generator_url:
        scorer = HttpScorer(scorer_url, token=sent["scorer"])
        generator = HttpGenerator(generator_url, in_flight=2, token=sent["generator"])
        async with open_jobs(sqlite_url, scorer, generator) as jobs:
            row = await jobs.run()
        await scorer.aclose()
        await generator.aclose()
    if wrong is None:
        assert (row.status, row.calls) == ("succeeded", target.n_requests)
        assert row.calls > 10
        return
    assert row.status == "failed"
    assert row.status_reason is not None
    assert row.status_reason["code"] == f"{wrong}_refused"
    assert f"IZ_OPTIMIZER_{wrong.upper()}_TOKEN" in row.status_reason["message"]
    assert "another" not in row.status_reason["message"]
    assert row.in_doubt_calls == row.reserved_calls == 0


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, ScorerRefused),
        (404, ScorerRefused),
        (422, ScorerRefused),
        (307, ScorerRefused),
        (408, ScorerNotReached),
        (429, ScorerNotReached),
        (502, ScorerUnavailable),
    ],
)
async def test_what_a_scorer_refuses_is_not_asked_again_and_what_passes_is(
    status: int, error: type[Exception]
) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=status, text="<h1>no</h1>", headers={"location": "/elsewhere"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    remote = HttpScorer(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        with pytest.raises(error) as caught:
            await collect(remote, request_for(2))
        assert type(caught.value) is error
        with pytest.raises(error):
            await remote.targets()
    finally:
        await remote.aclose()
        await runner.cleanup()


async def test_a_scorer_that_is_not_there_has_spent_nothing() -> None:
    remote = HttpScorer("http://127.0.0.1:1")
    with pytest.raises(ScorerNotReached):
        await collect(remote, request_for(1))
    await remote.aclose()
