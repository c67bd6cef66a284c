from __future__ import annotations

import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest

from services.optimizer.database import current_revision, head_revision

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is tested is that it is refused


@pytest.mark.parametrize("command", ["serve", "generator", "scorer"])
def test_no_server_listens_beyond_this_machine_without_a_key(folder, invoke, command):
    done = invoke(
        command, "--host", EVERYWHERE, "--port", "0", folder=folder.path,
        IZ_TARGETS=str(folder.path / "targets.yaml"),
    )  # fmt: skip
    assert done.exit_code == 2
    assert "refusing to listen on 0.0.0.0" in done.stderr
    assert not (folder.path / "instructzero.db").exists()


def test_serve_says_how_to_make_a_key(tmp_path, invoke):
    done = invoke("serve", "--host", EVERYWHERE, folder=tmp_path)
    assert "instructzero key" in done.stderr


@pytest.mark.parametrize("command", ["serve", "demo-target", "generator", "scorer"])
def test_a_port_in_use_is_said_in_words(folder, invoke, command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = invoke(
            command, "--port", port, folder=folder.path,
            IZ_TARGETS=str(folder.path / "targets.yaml"),
        )  # fmt: skip
    assert done.exit_code == 2
    assert f"port {port} is in use" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo-target", "--fault", "nonsense"], "KIND=RATE"),
        (["demo-target", "--fault", "500=2"], "from 0 to 1"),
        (
            ["generator", "--engine", "vllm", "--model", "./none", "--port", "0"],
            "vLLM is not installed" if find_spec("vllm") is None else "none",
        ),
        (["scorer", "--port", "0"], "needs a targets file"),
        (["runner", "--database", "postgresql://x/y"], "--generator-url and --scorer-url"),
        (
            ["runner", "--generator-url", "http://x", "--scorer-url", "http://x"],
            "a runner process needs Postgres",
        ),
        (["migrate", "--database", "mysql://x"], "postgresql://"),
        (["demo", "--task", "cooking"], "antonym"),
        (["list", "--label", "novalue"], "KEY=VALUE"),
        (["generator", "--model", "./none", "--port", "0"], "none"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_refused_in_words(tmp_path, invoke, arguments, words):
    done = invoke(*arguments, folder=tmp_path)
    assert done.exit_code == 2, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_migrate_makes_the_schema_and_may_be_repeated(tmp_path, invoke):
    for _ in range(2):
        done = invoke("migrate", "--database", "jobs.db", folder=tmp_path)
        assert done.exit_code == 0
        assert head_revision() in done.stderr
    assert current_revision(str(tmp_path / "jobs.db")) == head_revision()


def test_help_and_lists_load_no_tensor_library(tmp_path):
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from services.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "light = sorted({'httpx', 'fastapi', 'sqlalchemy'} & set(sys.modules))\n"
        "CliRunner().invoke(app, ['list', '--url', 'http://127.0.0.1:1'])\n"
        "CliRunner().invoke(app, ['migrate', '--database', sys.argv[1]])\n"
        "CliRunner().invoke(app, ['list', '--json', '--database', sys.argv[1]])\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'openai', 'scipy.stats'}\n"
        "print(light, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "jobs.db")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[] []"
