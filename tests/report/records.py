"""A job's record as the API gives it, made up but consistent."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from instructzero.contracts import (
    ChangedExample,
    Comparison,
    Event,
    Job,
    JobSpec,
    JobStatus,
    Measured,
    Result,
    ResultEntry,
    StatusReason,
    TrialView,
    Usage,
    Verdict,
)

BEGIN = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
USAGE = Usage(
    calls=1180,
    cached_calls=20,
    failed_calls=14,
    in_doubt_calls=3,
    prompt_tokens=41_230,
    completion_tokens=4_010,
    usd=0.0086,
)
VERBS = ["Write", "Give", "Name", "Say", "State"]
PHRASES = [
    "the opposite of the word",
    "a word that means the contrary",
    "a related word",
    "your view of the word",
    "something about it",
]


def make_spec(**changes: object) -> JobSpec:
    content: dict[str, object] = {
        "name": "antonyms",
        "task": {
            "exemplars": [{"input": "sane", "output": "insane"}],
            "validation": [{"input": f"v{i}", "output": ["b"]} for i in range(30)],
            "test": [{"input": f"t{i}", "output": ["b"]} for i in range(60)],
            "baseline": "Give a related word.",
        },
        "target": "demo",
        "budget": {"calls": 1200, "usd": 0.05},
    }
    return JobSpec.model_validate(content | changes)


def make_trials(n: int = 32, seed: int = 0) -> list[TrialView]:
    draw = random.Random(seed)
    trials = [_trial(1, "Give a related word.", "baseline", 0.4, 30)]
    texts = [f"{verb} {phrase}." for phrase in PHRASES for verb in VERBS][1:]
    for number in range(2, n + 1):
        score = min(1.0, max(0.0, draw.gauss(0.45, 0.22)))
        n_examples = draw.choice([6, 12, 30])
        text = texts[(number - 2) % 24]
        if number - 2 >= 24:
            text = f"{text} ({number})"
        trials.append(_trial(number, text, "soft_prompt", round(score, 3), n_examples))
    trials.append(_trial(n + 1, "Write the opposite of the word.", "soft_prompt", 0.97, 30))
    return trials


def _trial(number: int, text: str, source: str, score: float, n_examples: int) -> TrialView:
    half = 0.8 * (score * (1 - score) / n_examples + 0.002) ** 0.5 * 1.65
    return TrialView(
        trial=number,
        arm=number,
        source=source,
        step=number // 6,
        z=None if source == "baseline" else (0.1,) * 10,
        n_points=1,
        instruction=text,
        score=score,
        interval=(max(0.0, score - half), min(1.0, score + half)),
        n_examples=n_examples,
        status="completed" if n_examples == 30 else "partial",
        **({} if number % 2 else {"acquisition": 0.3 / number, "gp_mean": 0.5, "gp_sd": 0.1}),
    )


def make_events() -> list[Event]:
    best = [
        (0.4, 0.25, 0.56, "Give a related word."),
        (0.62, 0.4, 0.8, "Give the opposite of the word."),
        (0.7, 0.52, 0.84, "Give the opposite of the word."),
        (0.93, 0.82, 0.98, "Write the opposite of the word."),
        (0.97, 0.87, 0.99, "Write the opposite of the word."),
    ]
    rows: list[tuple[str, dict[str, object]]] = [("created", {}), ("claimed", {"runner": "r"})]
    for step, (score, low, high, text) in enumerate(best):
        found = {
            "instruction": text,
            "trial": step + 1,
            "score": score,
            "interval": [low, high],
            "n_examples": 30,
        }
        rows.append(("step_done", {"step": step, "calls": 60 + 210 * step, "best": found}))
        if step in {0, 1, 3}:
            rows.append(("new_best", found))
    rows += [
        ("condition_on", {"condition": "rate_limited"}),
        ("condition_off", {"condition": "rate_limited"}),
        ("succeeded", {}),
    ]
    return [
        Event(seq=i + 1, at=BEGIN + timedelta(seconds=4 * i), type=kind, data=data)  # type: ignore[arg-type]
        for i, (kind, data) in enumerate(rows)
    ]


def make_job(status: JobStatus = JobStatus.SUCCEEDED, **changes: object) -> Job:
    spec = changes.pop("spec", None) or make_spec()
    assert isinstance(spec, JobSpec)
    content: dict[str, object] = {
        "id": "job_0123456789abcdef",
        "name": spec.name,
        "status": status,
        "stop_reason": "budget_calls" if status.is_finished else None,
        "usage": USAGE,
        "spec": spec,
        "spec_hash": spec.spec_hash(),
        "seed": spec.seed,
        "version": 7,
        "created_at": BEGIN,
        "started_at": None if status is JobStatus.QUEUED else BEGIN + timedelta(seconds=1),
        "finished_at": BEGIN + timedelta(seconds=88) if status.is_finished else None,
    }
    return Job.model_validate(content | changes)


def make_result(**changes: object) -> Result:
    def changed(n: int, *, fixed: bool) -> ChangedExample:
        right, wrong = (f"right {n}", "unknown")
        return ChangedExample(
            example=n,
            input=f"input {n}",
            expected=(right, f"also right {n}"),
            winner_answer=right if fixed else wrong,
            reference_answer=wrong if fixed else right,
            winner_score=float(fixed),
            reference_score=float(not fixed),
        )

    content: dict[str, object] = {
        "job_id": "job_0123456789abcdef",
        "name": "antonyms",
        "spec_hash": make_spec().spec_hash(),
        "status": JobStatus.SUCCEEDED,
        "stop_reason": "budget_calls",
        "best": ResultEntry(
            instruction="Write the opposite of the word.",
            trial=33,
            validation=Measured(score=0.97, interval=(0.87, 0.99), n=30),
            test=Measured(score=0.92, interval=(0.84, 0.96), n=60),
        ),
        "baseline": ResultEntry(
            instruction="Give a related word.",
            trial=1,
            validation=Measured(score=0.4, interval=(0.26, 0.55), n=30),
            test=Measured(score=0.45, interval=(0.35, 0.55), n=60),
        ),
        "comparison": Comparison(
            reference="baseline",
            difference=0.467,
            interval=(0.36, 0.57),
            n=60,
            fixed=tuple(changed(n, fixed=True) for n in range(30)),
            broken=tuple(changed(n, fixed=False) for n in range(30, 32)),
            verdict=Verdict.BETTER,
            explanation="On 60 fresh examples the winner beats the baseline: the 90 % interval of "
            "the paired difference lies above zero.",
        ),
        "test_set": "given",
        "usage": USAGE,
        "trials": 33,
        "instructions": 41,
        "seed": 0,
        "reproducibility": {"algo_version": 1, "generator_fingerprint": "abc123"},
        "created_at": BEGIN,
        "finished_at": BEGIN + timedelta(seconds=88),
    }
    return Result.model_validate(content | changes)


REASON = StatusReason(code="unauthorized", message="the target refused the key: set DEMO_KEY")
