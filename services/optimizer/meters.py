"""What API and runner measure. Labels come from closed sets: statuses and our own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from statistics import NormalDist
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from instructzero.contracts import ScoreLine

JOBS = Gauge("instructzero_jobs", "Jobs that wait or run, by status", ["status"])
QUEUE_AGE = Gauge(
    "instructzero_queue_age_seconds", "How long the oldest queued job has waited; 0 if none"
)
EXPIRED = Gauge(
    "instructzero_expired_leases", "Running jobs whose lease ran out and that no runner took over"
)
DATABASE_UP = Gauge("instructzero_database_up", "Whether the database answered this scrape")

SLOTS = Gauge("instructzero_runner_slots", "Jobs that this runner takes at a time")
HELD = Gauge("instructzero_runner_jobs", "Jobs that this runner has in hand")
CLAIMED = Counter("instructzero_jobs_claimed", "Jobs that this runner claimed")
LEFT = Counter("instructzero_jobs_left", "Jobs that this runner let go, by the status", ["status"])
LOST = Counter("instructzero_leases_lost", "Leases that ended before their job")
UNRENEWED = Counter("instructzero_lease_renewals_failed", "Renewals that the database refused")
FAULTS = Counter("instructzero_job_faults", "Jobs interrupted by a fault of the program")

STEP_SECONDS = Histogram(
    "instructzero_step_seconds",
    "Time of a part of a step: ask, carry_out (generate and score), tell",
    ["part"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
)
EVALUATIONS = Counter("instructzero_evaluations", "Evaluations stored, by outcome", ["outcome"])
JOB_USD = Counter("instructzero_job_spent_usd", "What stored evaluations cost")
IN_DOUBT = Counter(
    "instructzero_in_doubt_calls", "Calls charged because nobody knows whether they were made"
)
BEST_SCORE = Histogram(
    "instructzero_best_score",
    "Validation score of the best instruction when a job ended",
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
IMPROVEMENT = Histogram(
    "instructzero_expected_improvement",
    "Largest expected improvement of the score among the points that a step proposed",
    buckets=(1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0),
)


def timed(part: str) -> AbstractContextManager[object]:
    """Note how long a part of a step takes."""
    return STEP_SECONDS.labels(part).time()


def note_proposals(notes: Sequence[Mapping[str, float]], best: Mapping[str, Any] | None) -> None:
    """Note what a step's points promise over the best score; those without a posterior, nothing."""
    normal, reference = NormalDist(), 0.0 if best is None else float(best["score"])
    gains = []
    for note in notes:
        if "mean" in note and note.get("sd", 0.0) > 0:
            mean, sd = note["mean"] - reference, note["sd"]
            gains.append(mean * normal.cdf(mean / sd) + sd * normal.pdf(mean / sd))
    if gains:
        IMPROVEMENT.observe(max(gains))


def note_evaluation(line: ScoreLine) -> None:
    """Note a stored evaluation and what it cost."""
    outcome = "cached" if line.cached else "refused" if line.refused else "answered"
    EVALUATIONS.labels("failed" if line.error else outcome).inc()
    JOB_USD.inc(0.0 if line.cached else line.usd or 0.0)
