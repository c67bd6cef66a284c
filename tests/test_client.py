"""The Python client against a real server: typed answers, our own errors, outages waited out."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import instructzero
from instructzero import AsyncClient, Client, JobSpec
from instructzero.contracts import Job, JobStatus, Verdict
from instructzero.errors import (
    Conflict,
    IdempotencyMismatch,
    InstructZeroError,
    InvalidRequest,
    InvalidSpec,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
    UnknownTarget,
)
from services.optimizer.auth import new_key
from services.optimizer.database import open_database
from tests.optimizer.apis import Api, body, serving
from tests.optimizer.worlds import make_spec

CANARY = "iz_canary-0123456789"


@pytest.fixture
def server(sqlite_url: str) -> Iterator[str]:
    """The address of a real server with a runner."""
    with serving(sqlite_url) as url:
        yield url


@pytest.fixture
async def api(sqlite_url: str) -> AsyncIterator[Api]:
    """The API in this process."""
    database = open_database(sqlite_url)
    api = Api(database, sqlite_url)
    yield api
    await api.http.aclose()
    await database.close()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    """A client of a real server."""
    with Client(server) as client:
        yield client


def test_a_job_from_creation_to_its_last_answer(client: Client) -> None:
    spec = make_spec(strategy="default", budget={"calls": 60}, labels={"team": "a"})
    assert client.estimate(spec).estimate.calls == 60
    created = client.create(spec)
    seen: list[Job] = []
    ended = client.wait(created.id, timeout_seconds=120, on_update=seen.append)
    assert ended.status is JobStatus.SUCCEEDED
    assert seen[-1] == ended
    assert [job.version for job in seen] == sorted({job.version for job in seen})
    result = client.result(ended.id)
    assert result.comparison is not None
    assert isinstance(result.comparison.verdict, Verdict)
    trials = client.trials(ended.id)
    assert len(trials) == result.trials
    assert client.trial(ended.id, trials[0].trial).instruction == trials[0].instruction
    assert client.events(ended.id)[-1].type == "succeeded"
    assert client.events(ended.id, after=client.events(ended.id)[-1].seq) == []
    assert len(client.export(ended.id).splitlines()) == ended.progress.evaluations
    assert client.export(ended.id, "csv").startswith("split,")
    assert [job.id for job in client.list(labels={"team": "a"}).data] == [ended.id]
    assert client.list(status="failed", labels={"team": "a"}).data == ()
    bill = client.usage(since=ended.created_at, group_by="label.team", limit=10)
    assert [(group.group, group.usage) for group in bill.data] == [("a", ended.usage)]
    client.delete(ended.id)
    with pytest.raises(NotFound):
        client.get(ended.id)


def test_jobs_are_steered(client: Client) -> None:
    job = client.create(body(budget={"calls": 10_000, "seconds": 600}))
    assert client.pause(job.id).id == job.id
    client.resume(job.id)
    client.cancel(job.id)
    assert client.wait(job.id, timeout_seconds=60).status is JobStatus.CANCELLED
    with pytest.raises(Conflict) as caught:
        client.resume(job.id)
    assert caught.value.reason == "finished"


def test_the_catalogue_is_typed(client: Client) -> None:
    assert client.targets()[0].name == "world"
    assert client.generators()[0].name == "default"
    assert {str(entry.name) for entry in client.strategies()} >= {"default", "random"}
    assert client.metrics()[0].name == "exact_match"
    assert client.version()


async def test_the_asynchronous_client_also_works_without_a_socket(api: Api) -> None:
    async with AsyncClient(transport=httpx.ASGITransport(api.app)) as client:
        job = await client.create(make_spec(budget={"calls": 30, "trials": 3}))
        same = await client.get(job.id, wait_seconds=0.3, newer_than=job.version)
        assert same.version == job.version
        await api.run(job.id)
        ended = await client.wait(job.id, timeout_seconds=30)
        assert ended.status is JobStatus.SUCCEEDED
        newer = await client.get(job.id, wait_seconds=60, newer_than=job.version)
        assert newer == ended
        assert len(await client.trials(job.id)) == (await client.result(job.id)).trials
        assert len(await client.events(job.id)) > 2
        page = await client.list(limit=1)
        assert page.data[0].id == job.id
        assert (await client.strategies())[0].options
        with pytest.raises(NotFound):
            await client.trial(job.id, 999)


def test_pages_are_followed_to_the_end(client: Client) -> None:
    job = client.create(make_spec(strategy="random", budget={"calls": 30, "trials": 20}))
    client.wait(job.id, timeout_seconds=120)
    events = client.events(job.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


# --- errors ---------------------------------------------------------------------------------------


def test_a_problem_becomes_the_error_that_the_server_raised(client: Client) -> None:
    with pytest.raises(UnknownTarget) as unknown:
        client.create(make_spec(target="nowhere"))
    assert unknown.value.errors[0].pointer == "/target"
    with pytest.raises(InvalidSpec) as options:
        client.create(make_spec(strategy={"name": "random", "options": {"speed": 1}}))
    assert options.value.errors[0].pointer == "/strategy/options/speed"
    client.create(make_spec(), idempotency_key="k")
    with pytest.raises(IdempotencyMismatch):
        client.create(make_spec(seed=1), idempotency_key="k")
    with pytest.raises(InvalidRequest):
        client.list(cursor="nonsense")
    with pytest.raises(NotFound):
        client.result("../etc/passwd")


def test_a_wrong_spec_is_refused_before_it_is_sent() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidSpec) as caught:
        client.create({"target": "x", "budget": {"calls": 0}, "task": {}})
    pointers = {problem.pointer for problem in caught.value.errors}
    assert {"/budget/calls", "/task/exemplars", "/task/validation"} <= pointers


def test_examples_from_a_file_are_read_by_the_client(client: Client, tmp_path: Path) -> None:
    rows = [json.dumps({"input": f"word {n}", "output": f"drow {n}"}) for n in range(40)]
    (tmp_path / "words.jsonl").write_text("\n".join(rows))
    dataset = {"format": "jsonl", "path": str(tmp_path / "words.jsonl"), "test": 10}
    task = {"dataset": dataset, "baseline": "Reverse the word."}
    job = client.create(body() | {"task": task})
    assert (len(job.spec.task.test), job.spec.task.baseline) == (10, "Reverse the word.")
    with pytest.raises(InvalidSpec):
        client.create(body() | {"task": {"dataset": dataset, "validation": []}})


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_server_that_is_not_there_is_unavailable_with_advice() -> None:
    async with AsyncClient(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(Unavailable, match="instructzero serve"):
            await client.version()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8080", "ftp://host", "http://", "http://user:pw@host", "http://[::1"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Client(address)
    assert "pw" not in caught.value.detail


class Answering(BaseHTTPRequestHandler):
    """Answers requests with what the test put in line; the last answer repeats."""

    answers: list[tuple[int, dict[str, str], bytes]]
    requests: list[tuple[str, str, dict[str, str], bytes]]

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        sent = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.requests.append((self.command, self.path, headers, sent))
        status, extra, content = self.answers[0]
        if len(self.answers) > 1:
            del self.answers[0]
        if status == 0:  # hang up in the middle
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that the library calls

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def odd_server() -> Iterator[tuple[str, type[Answering]]]:
    """A server that answers whatever the test says."""
    handler = type("Handler", (Answering,), {"answers": [], "requests": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


OddServer = tuple[str, type[Answering]]


def as_problem(status: int, code: str) -> bytes:
    """Return a problem document."""
    return json.dumps({"status": status, "code": code, "detail": "because", "new": 1}).encode()


async def job_answer(api: Api) -> bytes:
    """Return a job as the server sends it."""
    return json.dumps(await api.create()).encode()


async def test_a_creation_is_repeated_safely_with_one_key(api: Api, odd_server: OddServer) -> None:
    url, handler = odd_server
    handler.answers += [
        (0, {}, b""),
        (503, {}, as_problem(503, "store_unavailable")),
        (429, {"retry-after": "0"}, as_problem(429, "overloaded")),
        (202, {}, await job_answer(api)),
    ]
    async with AsyncClient(url) as client:
        assert (await client.create(make_spec())).status is JobStatus.QUEUED
    keys = {headers["idempotency-key"] for _, _, headers, _ in handler.requests}
    bodies = {sent for *_, sent in handler.requests}
    assert (len(handler.requests), len(keys), len(bodies)) == (4, 1, 1)


async def test_repetition_is_bounded(odd_server: OddServer) -> None:
    url, handler = odd_server
    handler.answers += [(429, {"retry-after": "0"}, as_problem(429, "overloaded"))]
    async with AsyncClient(url) as client:
        with pytest.raises(Overloaded):
            await client.targets()
    assert len(handler.requests) == 5


async def test_a_deletion_is_not_repeated_when_its_answer_is_lost(odd_server: OddServer) -> None:
    url, handler = odd_server
    handler.answers += [(0, {}, b"")]
    async with AsyncClient(url) as client:
        with pytest.raises(Unavailable):
            await client.delete("job_1")
    assert len(handler.requests) == 1


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (401, as_problem(401, "unauthorized"), Unauthorized),
        (409, as_problem(409, "some_new_reason"), Conflict),
        (418, as_problem(418, "teapot"), InstructZeroError),
        (502, b"<html>bad gateway</html>", Unavailable),
        (404, b"nothing", NotFound),
        (200, b"<html>hello</html>", Unavailable),
        (200, b'{"data": 5}', Unavailable),
        (301, b"", InstructZeroError),
    ],
)
async def test_whatever_answers_becomes_one_of_our_errors(
    odd_server: OddServer, status: int, content: bytes, kind: type[InstructZeroError]
) -> None:
    url, handler = odd_server
    handler.answers += [(status, {"location": "http://127.0.0.1:9/"}, content)]
    async with AsyncClient(url, CANARY) as client:
        with pytest.raises(InstructZeroError) as caught:
            await client.targets()
    assert isinstance(caught.value, kind)
    assert caught.value.detail
    assert CANARY not in str(caught.value)
    assert len(handler.requests) == 1


# --- keys and outages -----------------------------------------------------------------------------


def test_a_key_opens_the_server_and_is_never_shown(sqlite_url: str) -> None:
    key = new_key()
    with serving(sqlite_url, api_key_hashes=(key.digest,)) as url:
        with Client(url, key.key) as client:
            assert client.list().data == ()
            assert key.key not in f"{client!r} {vars(client)} {vars(client._connection)}"
        with Client(url) as stranger, pytest.raises(Unauthorized, match="Bearer"):
            stranger.list()
        with Client(url, "wrong") as stranger, pytest.raises(Unauthorized) as caught:
            stranger.list()
        assert "wrong" not in str(caught.value)


def test_a_key_that_no_header_can_hold_is_refused() -> None:
    for key in ("k\xe9y", "two\nlines"):
        with pytest.raises(InvalidRequest) as caught:
            Client("http://127.0.0.1:1", key)
        assert key not in caught.value.detail


def test_waiting_goes_on_through_a_restart_of_the_server(sqlite_url: str) -> None:
    port = free_port()
    ended: list[Job] = []
    with Client(f"http://127.0.0.1:{port}") as client:
        with serving(sqlite_url, port=port, lease_seconds=3):
            job = client.create(make_spec(budget={"calls": 1500}))
            waiting = threading.Thread(
                target=lambda: ended.append(client.wait(job.id, timeout_seconds=200))
            )
            waiting.start()
        assert not ended
        with serving(sqlite_url, port=port, lease_seconds=3):
            waiting.join(200)
    assert ended[0].status is JobStatus.SUCCEEDED


def test_a_wait_that_is_too_long_says_so(client: Client) -> None:
    job = client.create(make_spec(budget={"calls": 100_000}))
    client.pause(job.id)
    with pytest.raises(TimeoutError, match=r"0\.5 seconds"):
        client.wait(job.id, timeout_seconds=0.5)
    client.cancel(job.id)


def test_the_package_is_typed_and_light() -> None:
    folder = Path(instructzero.__file__).parent
    assert (folder / "py.typed").exists()
    program = (
        "import sys, instructzero\n"
        "heavy = {'fastapi', 'sqlalchemy', 'torch', 'numpy', 'yaml', 'services'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")} - {"close", "aclose"}

    assert public(Client) == public(AsyncClient)
    assert isinstance(JobSpec, type)
