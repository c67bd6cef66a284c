from __future__ import annotations

import hashlib
import html

import pytest
from rich.console import Console

from instructzero.contracts import JobStatus
from instructzero.errors import FieldProblem, InvalidSpec, Unavailable
from services.commands.console import Screen, harmless, jobs_table, progress_line, result_table
from services.commands.failures import tell
from services.report import wording
from services.report.page import render_report
from services.web import product_version
from tests.report.records import make_job, make_result


def test_a_key_is_shown_once_with_the_hash_that_the_server_is_given(invoke):
    done = invoke("key")
    key, digest = (line.split()[1] for line in done.stdout.splitlines())
    assert hashlib.sha256(key.encode()).hexdigest() == digest
    assert f"IZ_OPTIMIZER_API_KEY_HASHES='[\"{digest}\"]'" in done.stderr
    assert key not in done.stderr
    assert invoke("key").stdout != done.stdout


def test_the_version_is_the_packages(invoke):
    assert invoke("version").stdout.strip() == product_version()


def test_doctor_finds_what_answers_and_says_how_to_get_what_does_not(folder, invoke):
    arguments = ("doctor", *folder.connections)
    folder.world.key = None
    done = invoke(*arguments, folder=folder.path)
    assert done.exit_code == 0, done.stdout
    assert folder.world.requests == 0  # nothing was paid for
    paid = invoke(*arguments, "--paid-check", folder=folder.path)
    assert paid.exit_code == 0
    assert folder.world.requests == 1
    folder.world.key = "another"
    refused = invoke(*arguments, folder=folder.path)
    assert refused.exit_code == 1
    assert "target world" in refused.stdout
    text = (folder.path / "targets.yaml").read_text()
    (folder.path / "targets.yaml").write_text(text.replace(folder.world.url, "http://127.0.0.1:1"))
    assert invoke(*arguments, folder=folder.path).exit_code == 1
    keyless = invoke(*arguments, folder=folder.path, WORLD_KEY="")
    assert keyless.exit_code == 1
    assert "WORLD_KEY" in keyless.stdout


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (Unavailable("the server is away"), 1, "the server is away"),
        (
            InvalidSpec("x", errors=[FieldProblem("/task/test/3/input", "is empty")]),
            2,
            "task.test[3].input: is empty",
        ),
        (ExceptionGroup("group", [Unavailable("inner"), ValueError()]), 1, "inner"),
        (ZeroDivisionError("secret detail"), 1, "something went wrong on our side"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_failures_become_a_sentence_and_an_exit_code(
    capsys, tmp_path, monkeypatch, error, code, words
):
    monkeypatch.chdir(tmp_path)
    assert tell(error, is_debug=False) == code
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IZ_OPTIMIZER_API_KEY_HASHES", "not-json"),
        ("IZ_OPTIMIZER_LEASE_SECONDS", "soon"),
        ("IZ_OPTIMIZER_API_KEY_HASHES", '["iz_a-key-not-a-hash"]'),
    ],
)
def test_a_wrong_setting_is_named_and_not_shown(tmp_path, invoke, name, value):
    done = invoke("serve", "--port", "0", folder=tmp_path, **{name: value})
    assert done.exit_code == 2
    assert name.removeprefix("IZ_OPTIMIZER_").lower() in done.stderr.lower()
    assert value not in done.stderr


def test_a_fault_of_ours_leaves_its_traceback_in_a_log(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tell(ZeroDivisionError("by zero"), is_debug=False)
    (log,) = (tmp_path / "runs").iterdir()
    assert str(log.relative_to(tmp_path)) in capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in log.read_text()
    tell(ZeroDivisionError("by zero"), is_debug=True)
    assert "Traceback" not in capsys.readouterr().out


def test_text_of_models_cannot_steer_the_terminal():
    assert harmless("a\x1b[31mb\x07\u202ec\u00a0d\n") == "a\ufffd[31mb\ufffd\ufffdc\u00a0d\n"
    job = make_job()
    result = make_result()
    assert result.best is not None
    hostile = result.best.model_copy(update={"instruction": "\x1b]0;x\x07 [red]no style[/red]"})
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(result_table(job, result.model_copy(update={"best": hostile})))
        console.print(jobs_table([job]))
    text = console.export_text()
    assert "\x1b" not in text
    assert "[red]no style[/red]" in text


def test_the_result_table_holds_the_documents_numbers(capsys):
    Screen().result(make_job(), make_result())
    shown = capsys.readouterr().out.replace("│", "").replace("\u00a0", " ")
    text = " ".join(shown.split())
    assert "0.92 (0.84 to 0.96, n = 60)" in text
    assert "+0.47 (+0.36 to +0.57, n = 60)" in text
    assert "better than your baseline" in text
    assert "3 in doubt" in text


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(None, "no price set"), (0, "$0.00"), (12.5, "$12.50"), (0.0086, "$0.0086")],
)
def test_money_is_shown_with_the_digits_that_matter(amount, shown):
    assert wording.usd(amount) == shown


def test_progress_names_calls_money_and_time_left():
    job = make_job(progress={"trials": 1, "calls": 1180, "eta_seconds": 130})
    line = progress_line(job)
    assert line == "1,180 of 1,200 calls, 1 instruction, $0.0086, about 2 min 10 s left"


def test_progress_says_what_the_job_will_have_cost():
    amounts = {"expected": 1200, "interval": [1200, 1200]}
    money = {"expected": 0.02, "interval": [0.018, 0.025]}
    forecast = {"calls": amounts, "tokens": amounts, "usd": money, "seconds": amounts}
    job = make_job(
        progress={"trials": 1, "calls": 1180}, forecast=forecast, status=JobStatus.RUNNING
    )
    assert progress_line(job).endswith("$0.0086 of about $0.0200 ($0.0180 to $0.0250)")
    amounts |= {"interval": [1100, 1200]}
    job = make_job(forecast=forecast, status=JobStatus.RUNNING)
    page = html.unescape(render_report(job, None, [], []))
    assert "1,200 (1,100 to 1,200)" in page
    assert "$0.0200 ($0.0180 to $0.0250)" in page
