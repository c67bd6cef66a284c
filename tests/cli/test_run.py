from __future__ import annotations

import shlex
import signal
import sqlite3
from pathlib import Path

import pytest

from instructzero.contracts import Result
from services.demo.corpus import demo_task
from tests.cli.world import CANARY, World, make_folder, wait_until


def test_run_prints_the_result_document_alone_and_leaves_a_report(finished):
    folder, result = finished.folder, Result.model_validate_json(finished.out)
    assert result.usage.calls <= 200
    assert folder.world.requests == result.usage.calls
    assert result.best is not None
    page = (folder.path / "runs" / f"{result.job_id}.html").read_text()
    assert result.best.instruction in page
    assert page.startswith("<!doctype html>")


def test_a_key_of_the_environment_appears_nowhere(finished):
    assert CANARY not in finished.out + finished.err
    for path in finished.folder.path.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


def test_running_a_finished_job_again_prints_its_result_and_buys_nothing(finished):
    folder = finished.folder
    before = folder.world.requests
    again = folder.command("run", "--json", "--resume", finished.job_id, *folder.connections)
    assert (again.returncode, again.stdout) == (0, finished.out)
    assert folder.world.requests == before


def test_a_person_sees_estimate_progress_and_the_result_table(folder):
    done = folder.command("run", "job.yaml", "--report", "out/page.html", *folder.connections)
    assert done.returncode == 0
    assert "Estimate: about 200 calls (never more than 200)" in done.stderr
    assert " of 200 calls" in done.stderr
    assert "best " in done.stderr
    table = " ".join(done.stdout.replace("\u00a0", " ").split())
    for words in ("held-out score", "baseline", "difference", "verdict", "$"):
        assert words in table
    assert "Report: out/page.html" in done.stderr
    assert (folder.path / "out" / "page.html").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_paid_and_the_printed_command_goes_on(folder, number):
    folder.world.latency_seconds = 0.05
    running = folder.start("run", "job.yaml", "--json", *folder.connections)
    wait_until(lambda: folder.world.requests > 20)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    resume = shlex.split(err.strip().splitlines()[-1])
    assert resume[:3] == ["instructzero", "run", "job.yaml"]
    folder.world.latency_seconds = 0.0
    done = folder.command(*resume[1:])
    assert done.returncode == 0, done.stderr
    usage = Result.model_validate_json(done.stdout).usage
    assert (usage.in_doubt_calls, folder.world.repeats) == (0, 0)
    assert folder.world.requests == usage.calls <= 200


def test_a_second_interrupt_quits_at_once(folder):
    folder.world.latency_seconds = 5.0
    running = folder.start("run", "job.yaml", *folder.connections)
    wait_until(lambda: folder.world.requests > 0)
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    wait_until(lambda: "Stopping" in running.stderr.readline())
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=4)
    assert running.returncode == 130


def test_a_report_that_cannot_be_written_does_not_hide_the_result(finished, invoke):
    folder = finished.folder
    done = invoke(
        "run", "--json", "--resume", finished.job_id, "--report", "job.yaml/page.html",
        *folder.connections, folder=folder.path,
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (0, finished.out)
    assert "cannot be written to job.yaml/page.html" in done.stderr


def test_a_killed_run_goes_on_with_resume(folder):
    folder.world.latency_seconds = 0.05
    running = folder.start("run", "job.yaml", *folder.connections)
    wait_until(lambda: folder.world.requests > 20)
    running.kill()
    running.communicate()
    job_id = only_job(folder.path / "instructzero.db")
    folder.world.latency_seconds = 0.0
    done = folder.command("run", "job.yaml", "--json", "--resume", job_id, *folder.connections)
    assert done.returncode == 0, done.stderr
    usage = Result.model_validate_json(done.stdout).usage
    assert folder.world.repeats <= usage.in_doubt_calls
    assert folder.world.requests <= usage.calls <= 200


def only_job(database: Path) -> str:
    with sqlite3.connect(database) as connection:
        ((job_id,),) = connection.execute("SELECT id FROM jobs").fetchall()
    return str(job_id)


def test_a_job_file_that_is_not_the_resumed_jobs_is_refused(finished, invoke, tmp_path):
    other = make_folder(tmp_path, finished.folder.world)
    other.write_job(seed=9)
    done = invoke(
        "run", str(other.job), "--resume", finished.job_id, *finished.folder.connections,
        folder=finished.folder.path,
    )  # fmt: skip
    assert done.exit_code == 2
    assert f"is not what {finished.job_id} was made from" in done.stderr


def test_two_processes_do_not_run_jobs_on_one_file(folder):
    folder.world.latency_seconds = 0.2
    running = folder.start("run", "job.yaml", *folder.connections)
    try:
        wait_until(lambda: folder.world.requests > 0)
        done = folder.command("run", "job.yaml", *folder.connections)
        assert done.returncode != 0
        assert "another process runs jobs on instructzero.db" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        running.kill()
        running.communicate()


def test_a_failed_job_ends_with_1_and_says_why(folder):
    folder.world.key = CANARY
    text = (folder.path / "targets.yaml").read_text()
    (folder.path / "targets.yaml").write_text(text.replace("/v1\n", "/none/v1\n"))
    folder.world.answer = lambda body: (404, {"error": {"message": "no such model", "code": "x"}})
    done = folder.command("run", "job.yaml", "--json", *folder.connections)
    assert done.returncode == 1
    result = Result.model_validate_json(done.stdout)
    assert result.status == "failed"
    assert result.status_reason is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": {"calls": -1}}, "budget.calls"),
        ({"target": "nobody"}, "registered are: world"),
        ({"colour": "red"}, "colour"),
        ({"strategy": {"name": "random", "options": {"nope": 1}}}, "strategy.options.nope"),
        ({"metric": "judge"}, "metric"),
    ],
)
def test_a_bad_spec_ends_with_2_one_line_a_field_and_no_traceback(folder, invoke, changes, words):
    folder.write_job(**changes)
    done = invoke("run", "job.yaml", "--json", *folder.connections, folder=folder.path)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert folder.world.requests == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.yaml"], "none.yaml cannot be read"),
        (["targets.yaml"], "targets: there is no such field"),
        (["job.yaml", "--targets", "none.yaml"], "none.yaml: cannot be read"),
        (["job.yaml", "--targets", "job.yaml"], "targets file: "),
        (["job.yaml", "--database", "mysql://x"], "sqlite:///FILE or postgresql://"),
        (["--resume", "job_0"], "no such job"),
        ([], "name a job file"),
        (["job.yaml", "--nonsense"], "No such option"),
    ],
)
def test_bad_usage_ends_with_2_or_1_in_words(folder, invoke, arguments, words):
    done = invoke("run", *folder.connections, *arguments, folder=folder.path)
    assert done.exit_code in {1, 2}
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_target_whose_key_is_missing_is_refused_before_anything_is_spent(folder, invoke):
    done = invoke("run", "job.yaml", *folder.connections, folder=folder.path, WORLD_KEY="")
    assert done.exit_code == 2
    assert "WORLD_KEY is not set" in done.stderr
    assert folder.world.requests == 0


def test_the_bundled_model_needs_no_targets_file(tmp_path):
    folder = make_folder(tmp_path, World())
    words = [{"input": text, "output": answer} for text, answer in demo_task("antonym")[1][:6]]
    task = {"exemplars": words[:1], "validation": words[1:]}
    folder.write_job(target="demo", budget={"calls": 12}, task=task)
    done = folder.command("run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert 0 < Result.model_validate_json(done.stdout).usage.calls <= 12
