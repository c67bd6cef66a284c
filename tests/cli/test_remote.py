from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from instructzero.contracts import DryRun, JobPage, Result
from services.optimizer.auth import new_key
from tests.cli.world import Folder, World, make_folder, serve_world

KEY = new_key()


@dataclass
class Server:
    """A running `serve` process that asks for a key."""

    folder: Folder
    url: str
    process: subprocess.Popen[str]
    place: dict[str, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_world(World()) as world:
        folder = make_folder(tmp_path_factory.mktemp("server"), world)
        process = folder.start(
            "serve", "--port", "0", *folder.connections,
            IZ_OPTIMIZER_API_KEY_HASHES=json.dumps([KEY.digest]),
        )  # fmt: skip
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        url = next(line for line in lines if "Serving on" in line).split()[2]
        drain = threading.Thread(target=lambda: list(lines), daemon=True)
        drain.start()
        try:
            yield Server(folder, url, process, {"IZ_URL": url, "IZ_API_KEY": KEY.key})
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            drain.join(5)
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
            assert process.returncode == 0


@pytest.fixture(scope="module")
def submitted(server: Server) -> str:
    """The id of a job that was submitted and waited for."""
    done = server.folder.command("submit", "job.yaml", "--wait", "--json", **server.place)
    assert done.returncode == 0, done.stderr
    result = Result.model_validate_json(done.stdout)
    assert result.usage.calls == server.folder.world.requests
    return result.job_id


def test_a_submitted_job_is_run_by_the_server_and_watched_to_its_end(server, submitted, invoke):
    done = invoke("watch", submitted, **server.place)
    assert done.exit_code == 0
    assert "verdict" in done.stdout


def test_list_prints_the_body_of_get_jobs(server, submitted, invoke):
    headers = {"authorization": f"Bearer {KEY.key}"}
    body = httpx.get(f"{server.url}/jobs?limit=50", headers=headers).json()
    assert json.loads(invoke("list", "--json", **server.place).stdout) == body
    assert submitted in {job["id"] for job in body["data"]}


@pytest.mark.parametrize(
    ("options", "is_there"),
    [
        (["--status", "succeeded"], True),
        (["--status", "failed"], False),
        (["--label", "team=red"], True),
        (["--label", "team=blue"], False),
    ],
)
def test_list_can_be_narrowed(server, submitted, invoke, options, is_there):
    page = JobPage.model_validate_json(invoke("list", "--json", *options, **server.place).stdout)
    assert (submitted in {job.id for job in page.data}) is is_there


def test_usage_prints_the_body_of_get_usage(server, submitted, invoke):
    headers = {"authorization": f"Bearer {KEY.key}"}
    url = f"{server.url}/usage?group_by=label.team&limit=50&since=2020-01-01"
    body = httpx.get(url, headers=headers).json()
    options = ("--group-by", "label.team", "--since", "2020-01-01", "--json")
    assert json.loads(invoke("usage", *options, **server.place).stdout) == body
    assert "red" in {group["group"] for group in body["data"]}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--group-by", "team", "job, target or label.KEY"), ("--since", "monday", "write a date")],
)
def test_usage_says_what_it_cannot_group_or_read(server, invoke, option, value, words):
    done = invoke("usage", option, value, **server.place)
    assert done.exit_code == 2
    assert words in done.stderr


def test_the_same_idempotency_key_is_the_same_job(server, submitted, invoke):
    arguments = ("submit", str(server.folder.job), "--idempotency-key", "one", "--json")
    first, again = (invoke(*arguments, **server.place) for _ in range(2))
    assert json.loads(first.stdout)["id"] == json.loads(again.stdout)["id"]


def test_a_wrong_key_is_refused_and_never_shown(server, invoke):
    done = invoke("list", IZ_URL=server.url, IZ_API_KEY="iz_wrong-key")
    assert done.exit_code == 2
    assert "API key" in done.stderr
    assert "iz_wrong-key" not in done.stderr + done.stdout


def test_the_server_refuses_a_bad_spec_in_words(server, invoke, tmp_path):
    other = make_folder(tmp_path, server.folder.world)
    other.write_job(target="nobody")
    done = invoke("submit", str(other.job), **server.place)
    assert done.exit_code == 2
    assert "target: no such target is registered" in done.stderr


def test_no_server_is_said_in_words(invoke):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    done = invoke("list", IZ_URL=url)
    assert done.exit_code == 1
    assert "instructzero serve" in done.stderr


# --- the same against a database ------------------------------------------------------------------


def test_a_finished_job_is_read_from_its_database(finished, invoke):
    place = ("--database", finished.database)
    shown = invoke("result", finished.job_id, "--json", *place)
    assert shown.stdout == finished.out
    assert "held-out score" in invoke("result", finished.job_id, *place).stdout
    page = JobPage.model_validate_json(invoke("list", "--json", *place).stdout)
    assert [job.id for job in page.data] == [finished.job_id]
    assert finished.job_id in invoke("list", *place).stdout
    assert invoke("watch", finished.job_id, *place).exit_code == 0


def test_usage_is_shown_as_a_table_with_its_sum(finished, invoke):
    place = ("--database", finished.database)
    usage = Result.model_validate_json(finished.out).usage
    rows = invoke("usage", "--group-by", "target", *place).stdout.splitlines()
    (line,) = [row.split() for row in rows if row.strip().startswith("world")]
    (total,) = [row.split() for row in rows if row.strip().startswith("all")]
    assert line[1:] == total[1:]
    assert line[1:4] == ["1", str(usage.calls), str(usage.cached_calls)]
    assert [finished.job_id, "world"] in [
        row.split()[:2] for row in invoke("usage", *place).stdout.splitlines()
    ]


def test_export_writes_every_evaluation(finished, invoke, tmp_path):
    place = ("--database", finished.database)
    usage = Result.model_validate_json(finished.out).usage
    lines = invoke("export", finished.job_id, *place).stdout.splitlines()
    assert len(lines) == usage.calls
    assert "instruction" in json.loads(lines[0])
    file = tmp_path / "out.csv"
    done = invoke("export", finished.job_id, "--format", "csv", "--output", str(file), *place)
    assert done.exit_code == 0
    assert len(file.read_text().splitlines()) == usage.calls + 1


def test_report_writes_the_page_again(finished, invoke, tmp_path):
    file = tmp_path / "deep" / "page.html"
    done = invoke("report", finished.job_id, "--output", str(file), "--database", finished.database)
    assert done.exit_code == 0
    first = finished.folder.path / "runs" / f"{finished.job_id}.html"
    assert file.read_bytes() == first.read_bytes()


def test_a_finished_job_cannot_be_cancelled_any_more(finished, invoke):
    done = invoke("cancel", finished.job_id, "--database", finished.database)
    assert done.exit_code == 1
    assert "succeeded and cannot be cancelled" in done.stderr


def test_a_dry_run_estimates_and_stores_nothing(folder, invoke):
    done = invoke(
        "submit", "job.yaml", "--dry-run", "--json", *folder.connections[:2], folder=folder.path
    )
    assert DryRun.model_validate_json(done.stdout).estimate.calls_at_most == 200
    assert not (folder.path / "instructzero.db").exists()
    assert folder.world.requests == 0


def test_a_job_in_a_database_waits_for_a_server_and_can_be_cancelled(folder, invoke):
    queued = invoke("submit", "job.yaml", *folder.connections[:2], folder=folder.path)
    assert "instructzero serve" in queued.stderr
    done = invoke("cancel", queued.stdout.strip(), folder=folder.path)
    assert done.exit_code == 0
    assert "is cancelled" in done.stderr
    assert json.loads(invoke("result", queued.stdout.strip(), "--json").stdout)["status"] == (
        "cancelled"
    )


def test_a_database_that_is_not_there_is_not_made_by_reading(tmp_path, invoke):
    done = invoke("list", folder=tmp_path)
    assert done.exit_code == 2
    assert "instructzero.db does not exist" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert invoke("list", "--url", "http://127.0.0.1:1", "--database", "x").exit_code == 2
