from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from instructzero.contracts import Event, JobStatus, Measured, ResultEntry, Usage, Verdict
from services.report.page import MOST_TRIALS, render_report
from tests.report.records import (
    BEGIN,
    REASON,
    make_events,
    make_job,
    make_result,
    make_spec,
    make_trials,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"


class Page(HTMLParser):
    """Collects what a browser would act on, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._is_code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.text += " "
        self._is_code = tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._is_code = False

    def handle_data(self, data: str) -> None:
        if not self._is_code:
            self.text += data


def full_page() -> str:
    return render_report(make_job(), make_result(), make_trials(), make_events())


def test_the_headline_is_that_of_the_result_document():
    text = " ".join(Page(full_page()).text.split())  # no-break spaces become plain ones
    assert "Write the opposite of the word." in text
    assert "Held-out score 0.92 90 % interval 0.84 to 0.96, n = 60" in text
    assert "Better than your baseline" in text
    assert "On 60 fresh examples the winner beats the baseline" in text
    assert "30 fixed, 2 broken, 28 unchanged" in text
    assert "$0.0086" in text
    assert make_spec().spec_hash() in text


def test_the_page_asks_for_nothing_from_elsewhere():
    page = Page(full_page())
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    links = [value for name, value in page.attributes if name in {"src", "href", "action"}]
    assert all(str(value).startswith("#") for value in links)
    assert "http:" not in full_page()
    assert "https:" not in full_page()


def test_the_policy_allows_the_pages_own_script_alone():
    text = full_page()
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(v for n, v in Page(text).attributes if n == "content" and "default-src" in str(v))
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)


def test_text_of_users_and_models_stays_text():
    spec = make_spec(name=f"a {HOSTILE}", template="{instruction}" + HOSTILE + "{input}")
    result = make_result()
    comparison = result.comparison
    assert comparison is not None
    answer = comparison.fixed[0].model_copy(
        update={"winner_answer": HOSTILE, "input": HOSTILE, "expected": (HOSTILE,)}
    )
    result = result.model_copy(
        update={
            "best": ResultEntry(instruction=HOSTILE, trial=1),
            "comparison": comparison.model_copy(update={"fixed": (answer,)}),
            "reproducibility": {HOSTILE: HOSTILE},
        }
    )
    trials = [t.model_copy(update={"instruction": HOSTILE}) for t in make_trials(3)]
    events = [
        *make_events(),
        Event(seq=99, at=BEGIN, type=HOSTILE, data={"reason": HOSTILE}),
    ]
    job = make_job(
        JobStatus.FAILED,
        spec=spec,
        status_reason={"code": HOSTILE, "message": HOSTILE},
        conditions=(HOSTILE,),
    )
    text = render_report(job, result, trials, events)
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 10


@pytest.mark.parametrize("status", list(JobStatus))
@pytest.mark.parametrize("has_data", [True, False])
def test_a_job_of_any_status_has_a_page(status, has_data):
    job = make_job(status, status_reason=REASON if status is JobStatus.FAILED else None)
    result = None
    if status.is_finished:
        empty = {"best": None, "baseline": None, "comparison": None, "usage": Usage(), "trials": 0}
        result = make_result(status=status, **({} if has_data else empty))
    trials, events = (make_trials(), make_events()) if has_data else ([], [])
    page = Page(render_report(job, result, trials, events))
    assert ("svg" in page.tags) is has_data
    if status is JobStatus.FAILED:
        assert REASON.message in page.text
    if not status.is_finished:
        assert "can still change" in page.text


def test_a_winner_without_fresh_examples_is_called_what_it_is():
    result = make_result()
    assert result.best is not None
    assert result.comparison is not None
    unmeasured = result.comparison.model_copy(
        update={
            "difference": None,
            "interval": None,
            "n": 0,
            "fixed": (),
            "broken": (),
            "verdict": Verdict.NOT_ENOUGH_DATA,
            "explanation": "Only 0 fresh examples were measured.",
        }
    )
    result = result.model_copy(
        update={
            "best": result.best.model_copy(update={"test": None}),
            "baseline": None,
            "comparison": unmeasured,
            "test_set": "none",
        }
    )
    text = Page(render_report(make_job(), result, make_trials(), make_events())).text
    assert "was not measured on fresh examples" in text
    assert "Not enough data to tell it from" in text


def test_an_empty_winning_instruction_and_fractional_scores_are_shown():
    result = make_result(
        best=ResultEntry(
            instruction="",
            validation=Measured(score=0.5, interval=(0.4, 0.6), n=30),
            test=Measured(score=0.5, interval=(0.4, 0.6), n=60),
        )
    )
    text = Page(render_report(make_job(), result, make_trials(), make_events())).text
    assert "no instruction did better" in text


def test_a_long_search_is_cut_and_says_so():
    trials = make_trials(MOST_TRIALS + 100)
    text = render_report(make_job(), make_result(), trials, [])
    assert text.count('<tr class="') + text.count("<tr><td") < MOST_TRIALS + 200
    assert "more are in <code>instructzero export</code>" in text


def test_the_same_record_gives_the_same_bytes():
    assert full_page() == full_page()


def test_pictures_have_a_description_and_ids_of_their_own():
    text = full_page()
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{30,}"', text)) == 6
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="missing-program: chromium")
def test_a_browser_runs_the_page_without_a_complaint(tmp_path):
    file = tmp_path / "report.html"
    file.write_text(full_page(), encoding="utf-8")
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            f"--screenshot={shot}",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.count("<button") >= 9  # the script gave the headings their buttons
    assert "hidden" not in re.findall(r"<button[^>]*data-copy[^>]*>", done.stdout)[0]
    assert "CONSOLE" not in done.stderr
    assert shot.stat().st_size > 10_000
