"""A team's own scorer: signed, guarded, bounded; what fails is an error and never a score."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from instructzero.contracts import MetricSpec, ScoreError
from instructzero.errors import InvalidRequest, UnknownTarget
from services.scorer.conditions import Waits
from services.scorer.egress import GuardedResolver, is_public
from services.scorer.settings import Settings
from services.scorer.targets import Targets
from services.scorer.webhook import ScoringWebhook
from tests.scorer.conftest import FAST, PoolMaker, collect, request_for
from tests.scorer.fake_target import FakeTarget, answer

METRIC = MetricSpec(name="webhook", webhook="hook")
SECRET = "canary-secret-0123456789"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Hook:
    """A receiver whose replies a test decides."""

    url: str = ""
    port: int = 0
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    respond: Handler | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((dict(request.headers), body))
        if self.respond is not None:
            return await self.respond(request)
        content = json.loads(body)
        return web.json_response({"score": float(content["answer"] in content["outputs"])})


@asynccontextmanager
async def serving(hook: Hook) -> AsyncIterator[Hook]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hook.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook.port = runner.addresses[0][1]
    hook.url = f"http://127.0.0.1:{hook.port}/score"
    try:
        yield hook
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with serving(Hook()) as running:
        yield running


def registered(url: str, **changes: Any) -> dict[str, Any]:
    config = {"url": url, "secret": {"env": "HOOK_SECRET"}, "allow_private": True}
    return {"hook": {**config, **changes}}


async def ask(
    url: str, *, settings: Settings = FAST, addresses: list[str] | None = None, **changes: Any
) -> float | ScoreError:
    """Ask a webhook for one score; `addresses` is what its name resolves to."""
    targets = {"fake": {"base_url": "http://127.0.0.1/v1", "model": "m"}}
    content = {"targets": targets, "webhooks": registered(url, **changes)}
    registry = Targets.of(content)

    async def look_up(host: str, port: int) -> list[str]:
        return addresses or []

    webhook = ScoringWebhook(registry.webhook("hook"), settings, look_up=look_up)
    request = request_for(1, metric=METRIC)
    try:
        async with asyncio.timeout(10):
            return await webhook.score(
                request, request.examples[0], "word 0", Waits(lambda _: None, 1.0)
            )
    finally:
        await webhook.aclose()


async def test_the_webhook_scores_each_answer(
    make_pool: PoolMaker, target: FakeTarget, hook: Hook
) -> None:
    lines, _ = await collect(
        make_pool(webhooks=registered(hook.url)), request_for(5, metric=METRIC)
    )
    assert [line.score for line in lines.values()] == [1.0] * 5
    assert all(line.calls == 1 for line in lines.values()), "a webhook's requests are not paid"
    content = json.loads(hook.seen[0][1])
    assert content.keys() == {"job_id", "example_id", "input", "outputs", "answer"}


async def test_the_receiver_can_check_who_sent_a_body_and_when(hook: Hook) -> None:
    assert await ask(hook.url) == 1.0
    headers, body = hook.seen[0]
    stamp = headers["webhook-timestamp"]
    assert abs(time.time() - int(stamp)) < 60
    signed = f"{headers['webhook-id']}.{stamp}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest())
    assert headers["webhook-signature"] == f"v1,{expected.decode()}"
    assert SECRET not in repr(hook.seen)


async def test_a_secret_in_base64_is_decoded(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    key = b"0123456789abcdef"
    monkeypatch.setenv("HOOK_SECRET", f"whsec_{base64.b64encode(key).decode()}")
    await ask(hook.url)
    headers, body = hook.seen[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    monkeypatch.setenv("HOOK_SECRET", "whsec_no base64!")
    with pytest.raises(InvalidRequest, match=r"webhooks\.hook\.secret: .*not base64"):
        await ask(hook.url)


async def test_a_repeated_request_has_the_same_id(hook: Hook) -> None:
    async def broken_once(_: web.Request) -> web.Response:
        return web.json_response({"score": 0.5}, status=503 if len(hook.seen) == 1 else 200)

    hook.respond = broken_once
    assert await ask(hook.url) == 0.5
    assert len({headers["webhook-id"] for headers, _ in hook.seen}) == 1
    assert len(hook.seen) == 2


@pytest.mark.parametrize(
    "reply",
    ['{"score": 1.5}', '{"score": -0.1}', '{"score": true}', '{"score": "1"}', '{"score": NaN}',
     '{"score": null}', "{}", "1", "[1]", "", "<html>", "[" * 50_000, '{"score": 1' + " " * 70_000],
)  # fmt: skip
async def test_a_reply_without_a_score_is_an_error(hook: Hook, reply: str) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(text=reply)

    hook.respond = respond
    outcome = await ask(hook.url)
    assert isinstance(outcome, ScoreError)
    assert (outcome.code, outcome.retryable) == ("webhook_broken_answer", False)
    assert len(hook.seen) == 1


@pytest.mark.parametrize(
    ("status", "code", "retryable", "stops_job", "n_requests"),
    [
        (500, "webhook_error", True, False, 5),
        (503, "webhook_error", True, False, 5),
        (429, "webhook_error", True, False, 5),
        (400, "webhook_refused", False, False, 1),
        (401, "webhook_refused", False, True, 1),
        (404, "webhook_refused", False, True, 1),
        (302, "webhook_redirected", False, True, 1),
        (204, "webhook_refused", False, False, 1),
    ],
)
async def test_a_bad_status_is_an_error(
    hook: Hook, status: int, code: str, retryable: bool, stops_job: bool, n_requests: int
) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.json_response(
            {"score": 1}, status=status, headers={"location": f"{hook.url}/elsewhere"}
        )

    hook.respond = respond
    outcome = await ask(hook.url)
    assert isinstance(outcome, ScoreError)
    assert (outcome.code, outcome.retryable, outcome.stops_job) == (code, retryable, stops_job)
    assert len(hook.seen) == n_requests, "a redirect is not followed"


async def test_a_webhook_that_is_slow_or_drips_is_cut(hook: Hook) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    hook.respond = drip
    settings = FAST.model_copy(update={"max_attempts": 1})
    begun = time.monotonic()
    outcome = await ask(hook.url, settings=settings, timeout_seconds=0.2)
    assert isinstance(outcome, ScoreError)
    assert (outcome.code, outcome.retryable) == ("webhook_timeout", True)
    assert time.monotonic() - begun < 2


async def test_a_webhook_that_is_not_there_is_an_error() -> None:
    outcome = await ask("http://127.0.0.1:9/")
    assert isinstance(outcome, ScoreError)
    assert (outcome.code, outcome.retryable) == ("webhook_unreachable", True)


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("http://127.0.0.1:{port}/", None),
        ("http://[::1]:{port}/", None),
        ("http://hook.example:{port}/", ["127.0.0.1"]),
        ("http://hook.example:{port}/", ["93.184.215.14", "127.0.0.1"]),
        ("http://169.254.169.254/latest", None),
        ("http://2130706433:{port}/", ["127.0.0.1"]),
    ],
)
async def test_a_private_address_is_refused_unless_it_is_allowed(
    hook: Hook, url: str, addresses: list[str] | None
) -> None:
    outcome = await ask(url.format(port=hook.port), addresses=addresses, allow_private=False)
    assert isinstance(outcome, ScoreError)
    assert hook.seen == []
    if not url.startswith("http://2130706433"):  # the connector itself refuses such a number
        assert (outcome.code, outcome.stops_job) == ("webhook_forbidden_address", True)
        assert "allow_private" in outcome.message


async def test_the_connection_goes_to_the_checked_address_under_the_urls_name(hook: Hook) -> None:
    n_lookups = 0

    async def look_up(host: str, port: int) -> list[str]:
        nonlocal n_lookups
        n_lookups += 1
        return ["127.0.0.1"] if n_lookups == 1 else ["192.0.2.1"]

    targets = {"fake": {"base_url": "http://127.0.0.1/v1", "model": "m"}}
    url = f"http://hook.example:{hook.port}/score"
    registry = Targets.of({"targets": targets, "webhooks": registered(url)})
    webhook = ScoringWebhook(registry.webhook("hook"), FAST, look_up=look_up)
    request = request_for(1, metric=METRIC)
    waits = Waits(lambda _: None, 1.0)
    score = await webhook.score(request, request.examples[0], "word 0", waits)
    await webhook.aclose()
    assert (score, n_lookups) == (1.0, 1)
    assert hook.seen[0][0]["Host"] == f"hook.example:{hook.port}"


async def test_the_tls_handshake_names_the_urls_host() -> None:
    hello = bytearray()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello.extend(await reader.read(2_000))
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = FAST.model_copy(update={"max_attempts": 1})
    outcome = await ask(f"https://hook.example:{port}/", settings=settings, addresses=["127.0.0.1"])
    server.close()
    await server.wait_closed()
    assert isinstance(outcome, ScoreError)
    assert b"hook.example" in hello


async def test_a_name_is_resolved_once_and_every_address_is_checked() -> None:
    n_lookups = 0

    async def look_up(_: str, __: int) -> list[str]:
        nonlocal n_lookups
        n_lookups += 1
        return ["93.184.215.14"]

    found = await GuardedResolver(allow_private=False, look_up=look_up).resolve("h", 443)
    assert [entry["host"] for entry in found] == ["93.184.215.14"]
    assert n_lookups == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("10.0.0.1", False),
        ("172.16.5.4", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("0.0.0.0", False),  # noqa: S104 - an address, not a socket
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.1.1", False),
        ("239.1.1.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
    ],
)
def test_what_counts_as_public(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_a_failing_webhook_keeps_the_paid_answer_and_gives_no_score(
    make_pool: PoolMaker, target: FakeTarget, hook: Hook
) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.json_response({}, status=500)

    hook.respond = respond
    pool = make_pool(webhooks=registered(hook.url))
    lines, _ = await collect(pool, request_for(3, metric=METRIC))
    assert all(line.score is None and line.error for line in lines.values())
    hook.respond = None
    lines, _ = await collect(pool, request_for(3, metric=METRIC))
    assert all(line.score == 1.0 and line.calls == 0 for line in lines.values())
    assert target.n_requests == 3


async def test_a_webhook_that_refuses_us_stops_before_more_is_bought(
    make_pool: PoolMaker, target: FakeTarget, hook: Hook
) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.json_response({}, status=401)

    hook.respond = respond
    pool = make_pool(webhooks=registered(hook.url), limits={"in_flight": 2})
    lines, _ = await collect(pool, request_for(40, metric=METRIC))
    assert all(line.error and line.error.stops_job for line in lines.values())
    assert target.n_requests < 40


async def test_no_more_requests_run_at_once_than_the_webhook_takes(
    make_pool: PoolMaker, target: FakeTarget, hook: Hook
) -> None:
    now = most = 0

    async def respond(request: web.Request) -> web.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return web.json_response({"score": 1})

    hook.respond = respond
    await collect(
        make_pool(webhooks=registered(hook.url, in_flight=3)), request_for(20, metric=METRIC)
    )
    assert most == 3


async def test_a_webhook_that_is_not_registered_is_refused_before_a_call(
    make_pool: PoolMaker, target: FakeTarget
) -> None:
    target.respond = answer
    with pytest.raises(UnknownTarget) as caught:
        await collect(make_pool(), request_for(1, metric=METRIC))
    assert caught.value.errors[0].pointer == "/metric/webhook"
    assert target.n_requests == 0
