"""The report: one HTML file that needs nothing else, for a job in any status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markupsafe import Markup

from instructzero.contracts import Best, Event, Job, Measured, Result, TrialView
from services.report import plots, search_plots, wording
from services.report.frame import content_policy, open_template, page_script, page_style
from services.report.plots import LeaderPoint, References

MOST_TRIALS = 1_000
"""Rows of the table of instructions; the export has all of them."""
MOST_CHANGED = 200
MOST_EVENTS = 200
QUIET_EVENTS = frozenset({"step_done"})
EVENT_WORDS = {
    "created": "job created",
    "claimed": "a runner took the job",
    "new_best": "new leader",
    "condition_on": "waiting",
    "condition_off": "goes on",
    "calls_in_doubt": "calls in doubt were charged",
    "cancel_requested": "cancel requested",
    "pause_requested": "pause requested",
    "queued": "given back, ready to go on",
}
SOURCE_WORDS = {"soft_prompt": "search", "baseline": "baseline", "given": "given"}


@dataclass(frozen=True)
class Row:
    """One instruction of the table."""

    rank: int
    trial: TrialView
    source: str
    role: str


@dataclass(frozen=True)
class Moment:
    """One line of the history."""

    at: str
    what: str
    detail: str


def render_report(
    job: Job, result: Result | None, trials: Sequence[TrialView], events: Sequence[Event]
) -> str:
    """Return the report of a job as one HTML document.

    Args:
        job: the job as the API shows it.
        result: its result document, None while it has none.
        trials: every trial, in any order.
        events: every event, oldest first.
    """
    winner = wording.winner_text(result) if result else (job.best.instruction if job.best else None)
    ranked = sorted(
        trials, key=lambda t: (-t.score, -t.n_examples, t.instruction != winner, t.trial)
    )
    script = page_script()
    return open_template(
        "page.html.jinja"
    ).render(
        job=job,
        result=result,
        winner=winner,
        words=wording,
        policy=content_policy(script),
        style=Markup(page_style()),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
        pictures=_pictures(job, result, ranked, events, winner),
        rows=_rows(ranked[:MOST_TRIALS], winner),
        n_hidden=max(0, len(ranked) - MOST_TRIALS),
        n_ranked=len(ranked),
        tables=_changed(result),
        costs=_costs(job, result),
        settings=_settings(job, result),
        notes=_notes(job, result, len(trials)),
        history=_history(job.created_at, events),
    )


def _pictures(
    job: Job,
    result: Result | None,
    ranked: Sequence[TrialView],
    events: Sequence[Event],
    winner: str | None,
) -> dict[str, Markup]:
    """Return what can be drawn from the data there is."""
    drawn: dict[str, str] = {}
    points = leader_points(events)
    if points:
        drawn["leader"] = plots.best_so_far(points, _references(job, result))
    if ranked:
        drawn["forest"] = plots.forest(ranked, winner)
        drawn["scores"] = plots.distribution(
            ranked,
            next((trial.score for trial in ranked if trial.instruction == winner), None),
            next((trial.score for trial in ranked if _is_measured_baseline(trial)), None),
        )
    surrogate = result.surrogate if result is not None else None
    found = {
        "allocation": search_plots.allocation(ranked, winner),
        "expectation": search_plots.expectation(search_plots.expected_points(ranked)),
        "acquisition": search_plots.acquisition(ranked),
        "posterior": search_plots.posterior(surrogate),
        "box": search_plots.improvement_over_box(surrogate),
    }
    drawn |= {name: svg for name, svg in found.items() if svg is not None}
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704 - plots escape


def _is_measured_baseline(trial: TrialView) -> bool:
    return trial.source == "baseline" and trial.n_examples >= plots.LEAST_EXAMPLES


def leader_points(events: Sequence[Event]) -> list[LeaderPoint]:
    """Return the leader after each step that had one."""
    points: list[LeaderPoint] = []
    last = None
    for event in events:
        if event.type != "step_done" or event.data.get("best") is None:
            continue
        best = Best.model_validate(event.data["best"])
        points.append(
            LeaderPoint(
                calls=_counted(event),
                score=best.score,
                low=best.interval[0],
                high=best.interval[1],
                is_new=best.instruction != last,
            )
        )
        last = best.instruction
    return points


def _counted(event: Event) -> int:
    """Return the calls by then; an answer from the cache counts, as it does in the budget."""
    return int(str(event.data["calls"])) + int(str(event.data.get("cached_calls", 0)))


def _references(job: Job, result: Result | None) -> References:
    usage = (result or job).usage
    if result is None:
        return References(calls=usage.calls + usage.cached_calls)
    baseline = result.baseline
    return References(
        baseline_validation=baseline.validation if baseline else None,
        winner_test=result.best.test if result.best else None,
        baseline_test=baseline.test if baseline else None,
        calls=usage.calls + usage.cached_calls,
    )


def _rows(ranked: Sequence[TrialView], winner: str | None) -> list[Row]:
    def role(trial: TrialView) -> str:
        if trial.instruction == winner:
            return "winner"
        return "reference" if trial.source == "baseline" else ""

    return [
        Row(rank, trial, SOURCE_WORDS.get(trial.source, trial.source), role(trial))
        for rank, trial in enumerate(ranked, start=1)
    ]


def _changed(result: Result | None) -> list[dict[str, Any]]:
    """Return the tables of examples on which winner and reference differ."""
    found = result.comparison if result else None
    if found is None:
        return []
    other = "the baseline" if found.reference == "baseline" else "no instruction"
    titles = {
        "fixed": (f"Fixed: right with the winner, not with {other}", found.fixed),
        "broken": (f"Broken: right with {other}, not with the winner", found.broken),
    }
    return [
        {
            "name": name,
            "title": title,
            "n": len(examples),
            "examples": examples[:MOST_CHANGED],
            "other": "Baseline" if found.reference == "baseline" else "No instruction",
        }
        for name, (title, examples) in titles.items()
    ]


def _costs(job: Job, result: Result | None) -> list[tuple[str, str, str]]:
    usage, budget = (result or job).usage, job.spec.budget
    tokens = usage.prompt_tokens + usage.completion_tokens
    rows = [
        ("Calls to the target", wording.count(usage.calls), wording.count(budget.calls)),
        ("… of these failed and were tried again", wording.count(usage.failed_calls), ""),
        ("… of these in doubt after a crash", wording.count(usage.in_doubt_calls), ""),
        ("Answers from the cache, not bought", wording.count(usage.cached_calls), ""),
        ("Answers that a content filter refused", wording.count(usage.refused_answers), ""),
        ("Tokens", wording.count(tokens), wording.count(budget.tokens)),
        ("… read", wording.count(usage.prompt_tokens), ""),
        ("… written", wording.count(usage.completion_tokens), ""),
        ("Money", wording.usd(usage.usd), wording.usd(budget.usd) if budget.usd else "–"),
        ("Time", wording.elapsed(job), wording.seconds(budget.seconds)),
    ]
    if job.forecast is not None and not job.status.is_finished:
        ahead = job.forecast
        rows += [
            ("Forecast: calls at the end", wording.forecast(ahead.calls, wording.count), ""),
            ("… tokens", wording.forecast(ahead.tokens, wording.count), ""),
            ("… time", wording.forecast(ahead.seconds, wording.seconds), ""),
        ]
        if ahead.usd is not None:
            rows.append(("… money", wording.forecast(ahead.usd, wording.usd), ""))
    trials = result.trials if result else job.progress.trials
    return [("Instructions tried", wording.count(trials), wording.count(budget.trials)), *rows]


def _settings(job: Job, result: Result | None) -> list[tuple[str, str]]:
    spec = job.spec
    options = ", ".join(f"{name} = {value}" for name, value in spec.strategy.options.items())
    generator = spec.generator
    task = spec.task
    rows = [
        ("Target", spec.target),
        ("Metric", str(spec.metric.name)),
        ("Template", spec.template),
        ("Examples", _sizes(len(task.exemplars), len(task.validation), len(task.test))),
        ("Strategy", f"{spec.strategy.name}{f' ({options})' if options else ''}"),
        (
            "Generator",
            f"{generator.name}: {generator.n_tokens} soft tokens, {generator.intrinsic_dim} "
            f"dimensions, {generator.projection} projection, scale {generator.scale:g}",
        ),
        ("Answers per example", str(spec.repeats)),
        ("Seed", str(job.seed)),
        ("Spec hash", job.spec_hash),
        ("Job", job.id),
        ("Created", _instant(job.created_at)),
    ]
    known = result.reproducibility if result else {}
    return rows + [(name.replace("_", " ").capitalize(), str(known[name])) for name in known]


def _sizes(exemplars: int, validation: int, test: int) -> str:
    return f"{exemplars} exemplars, {validation} validation, {test} test"


def _notes(job: Job, result: Result | None, n_trials: int) -> list[str]:
    """Return what an honest reader should know before using the winner."""
    if result is None:
        return ["The job has not finished: every number on this page can still change."]
    notes = [_about_test_set(result)]
    best = result.best
    if best and best.validation and best.test:
        notes.append(
            f"The winner was chosen among {n_trials} instructions by its validation score "
            f"({wording.score(best.validation.score)}). The best of many noisy scores is flattered "
            f"by luck; the {wording.score(best.test.score)} on fresh examples is not."
        )
    if result.usage.in_doubt_calls:
        notes.append(
            f"{wording.count(result.usage.in_doubt_calls, 'call')} were on their way when a "
            "process died. They count as spent, though nobody knows whether they were."
        )
    if result.usage.refused_answers:
        notes.append(
            f"A content filter refused {wording.count(result.usage.refused_answers, 'answer')}; "
            "each counts as wrong."
        )
    if result.usage.usd is None:
        notes.append("The target has no price in the targets file, so no money is shown.")
    return [note for note in notes if note]


def _about_test_set(result: Result) -> str:
    n = _fresh(result)
    if n is None:
        return (
            "The winner was not measured on fresh examples, so its score is that of the examples "
            "it was chosen on: expect less in use. More examples or a larger budget would tell."
        )
    origin = {
        "given": "the test examples you gave",
        "held_out": "examples the job set aside from your validation set",
    }.get(result.test_set, "fresh examples")
    return f"The winner was measured on {n.n} of {origin}; the search never saw them."


def _fresh(result: Result) -> Measured | None:
    return result.best.test if result.best else None


def _history(created: datetime, events: Sequence[Event]) -> list[Moment]:
    shown = [event for event in events if event.type not in QUIET_EVENTS]
    kept = shown if len(shown) <= MOST_EVENTS else [*shown[: MOST_EVENTS - 20], *shown[-20:]]
    return [
        Moment(
            at=wording.seconds((event.at - created).total_seconds()),
            what=EVENT_WORDS.get(event.type, event.type.replace("_", " ")),
            detail=_event_detail(event),
        )
        for event in kept
    ]


def _event_detail(event: Event) -> str:
    data = event.data
    if event.type == "new_best":
        return f"{wording.score(float(str(data['score'])))}: {data['instruction']}"
    if event.type in {"condition_on", "condition_off"}:
        return wording.conditions([str(data.get("condition", ""))])
    if event.type == "calls_in_doubt":
        return wording.count(int(str(data.get("calls", 0))), "call")
    return str(data["reason"]).replace("_", " ") if data.get("reason") else ""


def _instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
