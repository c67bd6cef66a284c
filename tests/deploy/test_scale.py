from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.record import RESULTS
from benchmarks.scale import Assumptions, bill, parts, stored

COSTS = json.loads((RESULTS / "unit_costs.json").read_text())
GIVEN = Assumptions(**json.loads((RESULTS / "scale.json").read_text())["assumptions"])


def test_the_written_result_follows_from_the_measured_costs():
    written = json.loads((RESULTS / "scale.json").read_text())
    needs = parts(GIVEN, COSTS)
    assert [part.units for part in needs] == [part["units"] for part in written["parts"]]
    assert bill(GIVEN, COSTS, needs) == pytest.approx(written["usd_per_day"])
    assert stored(GIVEN, COSTS)._asdict() == pytest.approx(written["stored"])


def test_twice_the_jobs_need_twice_of_everything_and_calls_cost_twice():
    doubled = replace(GIVEN, jobs_per_day=2 * GIVEN.jobs_per_day)
    for one, two in zip(parts(GIVEN, COSTS), parts(doubled, COSTS), strict=True):
        assert two.needed == pytest.approx(2 * one.needed)
        assert two.units >= one.units
    before = bill(GIVEN, COSTS, parts(GIVEN, COSTS))["paid calls"]
    assert bill(doubled, COSTS, parts(doubled, COSTS))["paid calls"] == pytest.approx(2 * before)


def test_a_part_is_never_planned_full_nor_alone():
    for part in parts(replace(GIVEN, jobs_per_day=10.0), COSTS):
        assert part.units >= (2 if part.unit == "core" else 1)
    for part in parts(GIVEN, COSTS):
        assert part.needed <= part.units * part.each
