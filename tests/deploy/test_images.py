from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy.compose import ROOT
from tests.deploy.packages import distributions, listed

FILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
LISTS = sorted((ROOT / "deploy" / "docker").glob("requirements-*.txt"))
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
    "hadolint"
)


def name_of(path: Path) -> str:
    return path.stem.split("-")[-1]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint has no wheel for this machine")
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_linter_finds_nothing(path):
    done = subprocess.run(
        [str(HADOLINT), "--failure-threshold", "info", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_image_is_pinned_small_and_without_root(path):
    text = path.read_text()
    lines = text.splitlines()
    assert lines[0].startswith("# syntax=")
    assert lines[1] == "# check=error=true"
    bases = re.findall(r"^FROM (\S+)", text, flags=re.M)
    assert len(bases) >= 2, "what builds is not what runs"
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", bases[0])
    for stage in re.split(r"^FROM ", text, flags=re.M)[2:]:
        assert re.search(r"^USER 10001:10001$", stage, flags=re.M)
        assert re.search(r"^HEALTHCHECK ", stage, flags=re.M)
        assert re.search(r'^ENTRYPOINT \["instructzero"\]$', stage, flags=re.M)
        assert "org.opencontainers.image.licenses" in stage
    assert "ADD " not in text
    assert not re.search(r"^ARG .*(TOKEN|KEY|PASSWORD|SECRET)", text, flags=re.M)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_image_copies_only_what_exists(path):
    for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), flags=re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


@pytest.mark.parametrize("path", LISTS, ids=name_of)
def test_what_an_image_installs_is_pinned_in_the_lock(path):
    lock = (ROOT / "requirements.lock").read_text()
    for line in listed(name_of(path)):
        name = Requirement(line).name.lower()
        assert f"\n{name}==" in lock
        assert not Requirement(line).specifier


def test_no_image_holds_what_it_does_not_need():
    scorer, optimizer, generator = (
        distributions(part) for part in ("scorer", "optimizer", "generator")
    )
    assert not scorer & {"torch", "numpy", "sqlalchemy", "ray", "transformers"}
    assert not optimizer & {"transformers", "ray", "vllm", "redis", "openai", "matplotlib"}
    assert not generator & {"sqlalchemy", "redis", "botorch", "ray", "vllm"}
