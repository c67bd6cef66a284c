"""The harness at a small size, and that the page on failures names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.__main__ import Plan, run
from tests.faults.cluster import Size

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "failures.md"


@pytest.mark.timeout(600)
async def test_the_whole_system_comes_through_a_storm(tmp_path: Path) -> None:
    said: list[str] = []
    plan = Plan(seed=1, seconds=15.0, n_jobs=4, size=Size(apis=1, runners=2, scorers=1))
    report = await run(plan, tmp_path, said.append)
    assert report.broken == []
    assert sum(report.figures["faults"].values()) >= 3, said


def test_every_failure_on_the_page_has_its_test() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text())
    assert len(named) >= 30
    for file, test in named:
        found = (ROOT / "tests").rglob(file)
        assert any(f"def {test}(" in path.read_text() for path in found), (file, test)
