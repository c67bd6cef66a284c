from __future__ import annotations

import re

import pytest

from instructzero.contracts import Belief, BoxSlice, Event, Measured, Surrogate
from services.report.comparison_plots import Curve, PaperPoint, beside_the_paper, best_by_strategy
from services.report.page import leader_points, render_report
from services.report.search_plots import (
    acquisition,
    allocation,
    expectation,
    expected_points,
    improvement_over_box,
    posterior,
)
from services.report.tables import TablePage, render_table_page
from tests.report.records import make_events, make_job, make_result, make_trials

HOSTILE = "</text><script>alert(1)</script>&$x_{2}$"


def description(svg: str | None) -> str:
    assert svg is not None
    found = re.search(r'aria-label="([^"]+)"', svg)
    assert found is not None
    return found.group(1)


def test_the_allocation_says_where_the_answers_went():
    trials = sorted(make_trials(3), key=lambda trial: -trial.score)
    trials = [
        trial.model_copy(update={"n_examples": n})
        for trial, n in zip(trials, (20, 4, 4, 4), strict=True)
    ]
    said = description(allocation(trials, trials[0].instruction))
    assert "each of 4 instructions" in said
    assert "75% of 32 answers" in said


def test_the_expectation_compares_only_what_the_surrogate_proposed():
    trials = make_trials(8)
    points = expected_points(list(reversed(trials)))
    assert [point.trial for point in points] == [2, 4, 6, 8]
    gap = sum(abs(point.score - 0.5) for point in points) / 4
    assert f"they lie {gap:.2f} apart" in description(expectation(points))


@pytest.mark.parametrize(
    ("values", "label"),
    [((0.3, 0.1, 0.02), "expected improvement"), ((-1.0, -4.0, -9.0), "log expected improvement")],
)
def test_acquisition_values_are_named_by_their_kind(values, label):
    trials = [
        trial.model_copy(update={"acquisition": value, "step": step})
        for step, (trial, value) in enumerate(zip(make_trials(2), values, strict=True))
    ]
    svg = acquisition(trials)
    assert re.findall(r">((?:log )?expected improvement)<", svg or "") == [label]
    assert "falls from a step to the next 2 times of 2" in description(svg)


def test_the_end_of_the_search_shows_beliefs_and_where_more_was_to_be_gained():
    leaders = tuple(Belief(instruction=HOSTILE, mean=0.9 - n / 10, sd=0.05) for n in range(4))
    grid = (-1.0, 0.0, 1.0)
    value = ((0.0, 0.01, 0.02), (0.01, 0.05, 0.03), (0.0, 0.02, 0.04))
    plane = BoxSlice(axes=(2, 7), grid=grid, value=value, leader=(0.5, -0.5))
    surrogate = Surrogate(leaders=leaders, slice=plane)
    assert "4 leading instructions, from 0.90" in description(posterior(surrogate))
    drawn = improvement_over_box(surrogate)
    assert "from 0 to 0.05" in description(drawn)
    assert re.findall(r">coordinate (\d+) of z<", drawn or "") == ["3", "8"]
    page = render_report(make_job(), make_result(surrogate=surrogate), make_trials(), make_events())
    assert "What it believed in the end" in page
    assert HOSTILE not in page
    flat = plane.model_copy(update={"value": ((0.0,) * 3,) * 3})
    assert improvement_over_box(Surrogate(leaders=leaders, slice=flat)) is not None


def test_what_was_never_proposed_by_a_surrogate_has_no_picture():
    plain = {"acquisition": None, "gp_mean": None, "gp_sd": None}
    trials = [trial.model_copy(update=plain) for trial in make_trials()]
    text = render_report(make_job(), make_result(), trials, make_events())
    assert "What the Gaussian process expected" not in text
    assert "What each proposal promised" not in text
    assert "Where the answers went" in text
    assert allocation(trials[:2], None) is None


def test_an_answer_from_the_cache_moves_the_leader_to_the_right_as_the_budget_does():
    events = [
        Event(seq=e.seq, at=e.at, type=e.type, data={**e.data, "cached_calls": 7})
        for e in make_events()
    ]
    plain, cached = leader_points(make_events()), leader_points(events)
    assert [point.calls + 7 for point in plain] == [point.calls for point in cached]


def test_strategies_are_told_apart_by_dashes_and_marks_and_named_in_words():
    points = tuple(leader_points(make_events()))
    found = Measured(score=0.8, interval=(0.7, 0.9), n=40)
    names = ("default", "instructzero", "random", "ape")
    curves = [Curve(name, points, found if name != "ape" else None, 1000) for name in names]
    svg = best_by_strategy(curves)
    assert "default 0.80, instructzero 0.80, random 0.80, ape not measured" in description(svg)
    assert len(set(re.findall(r"stroke-dasharray: ([0-9., ]+)", svg))) >= 3
    assert {f"var(--{name})" for name in ("winner", "reference", "third", "fourth")} <= set(
        re.findall(r"var\(--\w+\)", svg)
    )


def test_a_tasks_name_stays_text_in_the_papers_picture_and_page():
    found = Measured(score=0.8, interval=(0.7, 0.9), n=40)
    svg = beside_the_paper(
        [PaperPoint(HOSTILE, found, 0.9, 0.5), PaperPoint("a", None, None, None)]
    )
    page = render_table_page(
        TablePage(
            title=HOSTILE,
            lead=HOSTILE,
            columns=("task", "score"),
            numbers=frozenset({"score"}),
            texts=frozenset({"task"}),
            rows=[(HOSTILE, HOSTILE)],
            picture=svg,
            caption=HOSTILE,
            notes=[HOSTILE],
            settings={HOSTILE: HOSTILE},
        )
    )
    assert page.count("<script>") == 1
    assert page.count("&lt;script&gt;alert(1)") >= 9
    assert "1 tasks beside" in description(svg)


def test_no_task_measured_is_no_picture():
    assert beside_the_paper([PaperPoint("a", None, 0.9, 0.5)]) is None
