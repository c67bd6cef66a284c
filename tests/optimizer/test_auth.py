"""API keys: who gets in, what stays open, and when the server refuses to start."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route

from instructzero.errors import InvalidRequest
from services.optimizer.auth import OPEN_PATHS, check_exposure, digest_of, new_key, read_digests
from services.optimizer.database import open_database
from services.optimizer.settings import Settings
from tests.optimizer.apis import Api, body, problem

KEY, OTHER = new_key(), new_key()


@pytest.fixture
async def locked(sqlite_url: str) -> AsyncIterator[Api]:
    """The API with two keys configured."""
    database = open_database(sqlite_url)
    api = Api(database, sqlite_url, api_key_hashes=(OTHER.digest, KEY.digest.upper()))
    yield api
    await api.http.aclose()
    await database.close()


def bearer(key: str) -> dict[str, str]:
    """Return the header that sends a key."""
    return {"authorization": f"Bearer {key}"}


def routes_of(api: Api) -> list[tuple[str, str]]:
    """Return every (method, path) that the app serves, with path parameters filled in."""
    found = []
    routes: list[BaseRoute] = list(api.app.router.routes)
    for route in routes:
        nested = getattr(route, "routes", None)
        if nested:
            routes += nested
        if isinstance(route, Route | APIRoute):
            path = re.sub(r"\{trial\}", "1", re.sub(r"\{job_id\}", "job_1", route.path))
            found += [(method, path) for method in route.methods or {"GET"}]
    return found


async def test_no_route_but_the_health_checks_is_open(locked: Api) -> None:
    described = {
        (method.upper(), path)
        for path, item in locked.app.openapi()["paths"].items()
        for method in item
    }
    filled = {
        (method, path.replace("{job_id}", "job_1").replace("{trial}", "1"))
        for method, path in described
    }
    routes = {*routes_of(locked), *filled}
    assert len(routes) > 20
    assert ("GET", "/openapi.json") in routes
    for method, path in sorted(routes):
        response = await locked.http.request(method, path, json=body())
        if path in OPEN_PATHS:
            assert response.status_code == 200, (method, path)
            continue
        assert response.status_code == 401, (method, path)
        assert method == "HEAD" or problem(response)["code"] == "unauthorized"
        assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/redoc",
        "/nowhere",
        "/",
        "//healthz",
        "/healthz/",
        "/healthz/../jobs",
        "/HEALTHZ",
        "/jobs/%2e%2e/healthz",
        "/metrics",
    ],
)
async def test_a_path_that_resembles_an_open_one_is_closed(locked: Api, path: str) -> None:
    response = await locked.http.get(path)
    assert response.status_code in {401, 404}
    if path != "/healthz/":
        assert response.status_code == 401


async def test_every_registered_key_opens(locked: Api) -> None:
    for key in (KEY.key, OTHER.key):
        assert (await locked.http.get("/jobs", headers=bearer(key))).status_code == 200
    lower = await locked.http.get("/jobs", headers={"authorization": f"bearer {KEY.key}"})
    assert lower.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY.key}",
        KEY.key,
        f"Bearer {KEY.key}x",
        f"Bearer {KEY.key[:-1]}",
        f"Bearer {KEY.digest}",
        f"Bearer {KEY.key} {OTHER.key}",
        "Bearer \xff\xfe",
    ],
    ids=range(10),  # the keys differ from process to process
)
async def test_a_wrong_key_does_not_open(locked: Api, header: str) -> None:
    response = await locked.http.get("/jobs", headers={"authorization": header.encode("latin-1")})
    assert problem(response)["status"] == 401
    assert KEY.key not in response.text


async def test_two_authorization_headers_do_not_open(locked: Api) -> None:
    headers = [("authorization", f"Bearer {KEY.key}"), ("authorization", "Bearer x")]
    assert (await locked.http.get("/jobs", headers=headers)).status_code == 401


async def test_without_keys_everything_is_open(api: Api) -> None:
    assert (await api.http.get("/jobs")).status_code == 200


async def test_a_refused_body_is_not_read(locked: Api) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    async with asyncio.timeout(20):
        response = await locked.http.post("/jobs", content=endless())
    assert response.status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
def test_a_public_address_without_a_key_is_refused_with_advice(host: str) -> None:
    with pytest.raises(InvalidRequest, match="instructzero key") as caught:
        check_exposure(host, Settings())
    assert caught.value.reason == "api_key_missing"
    check_exposure(host, Settings(api_key_hashes=(KEY.digest,)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_no_key(host: str) -> None:
    check_exposure(host, Settings())


@pytest.mark.parametrize("wrong", ["iz_the-key-itself", "abc", "g" * 64])
def test_a_key_in_place_of_its_digest_is_refused_and_not_shown(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="digests") as caught:
        read_digests(Settings(api_key_hashes=(wrong,)))
    assert wrong not in caught.value.detail


def test_new_keys_are_long_and_never_the_same() -> None:
    keys = {new_key().key for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) > 40 and digest_of(key) != key for key in keys)
