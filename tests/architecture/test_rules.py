"""The rules of CONTRIBUTING.md that a tool can hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = sorted(
    path
    for package in ("instructzero", "services")
    for path in (ROOT / package).rglob("*.py")
    if not {"__pycache__", "versions"} & set(path.parts)
)
LONGER_FOR_A_REASON = {
    "instructzero/contracts.py": "every wire model, in one place to read",
    "services/optimizer/store.py": "the SQL of a claimed job, in one place to read",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_point_one_way():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    if name_of(path) not in LONGER_FOR_A_REASON:
        assert len(text.splitlines()) <= 350, "aim at 300: split it by noun"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            first = node.body[0]
            docstring = 0
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstring = (first.end_lineno or first.lineno) - first.lineno + 1
            length = node.end_lineno - node.lineno + 1 - docstring
            assert length <= 60, f"{node.name} has {length} lines; aim at 40"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (
            "instructzero, instructzero.contracts, instructzero.datasets",
            {"torch", "fastapi", "sqlalchemy", "redis", "ray", "numpy", "yaml"},
        ),
        (
            "services.cli, services.commands.serving, services.scorer.app",
            {"torch", "sqlalchemy", "redis", "ray", "numpy", "httpx", "rapidfuzz"},
        ),
    ],
    ids=["client", "scorer"],
)
def test_a_process_imports_nothing_heavy_that_it_does_without(modules, heavy):
    program = f"import sys, {modules}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_lock_pins_every_requirement_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    pins = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.!]+", pin) for pin in pins)
    assert pins == sorted(pins, key=lambda pin: pin.split("==")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["dev"], *extras["cluster"]]
    pinned = {pin.split("==")[0] for pin in pins}
    for requirement in named:
        name = re.split(r"[\[<>=!~ ;]", requirement)[0].lower().replace("_", "-")
        assert name in pinned, f"{name} has no pin"
