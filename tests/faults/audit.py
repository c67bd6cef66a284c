"""What must hold afterwards, by the target's own log and by a trigger that saw every write."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import Engine

from tests.faults.system import HANDED_OVER, comparable
from tests.faults.workload import Ended, Work

WATCH = (
    """
    CREATE TABLE audit (
        n bigserial PRIMARY KEY, tx bigint, job_id text, writer text, token_before int,
        token_after int, status_before text, status_after text
    )
    """,
    """
    CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO audit (tx, job_id, writer, token_before, token_after, status_before,
                           status_after)
        VALUES (txid_current(), NEW.id, current_setting('application_name'), OLD.lease_token,
                NEW.lease_token, OLD.status, NEW.status);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER note_write AFTER UPDATE ON jobs
    FOR EACH ROW EXECUTE FUNCTION note_write()
    """,
)
"""Every transaction of a runner updates its job's row, so none goes unseen."""


def open_engine(database_url: str) -> Engine:
    return create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))


def watch_writes(database_url: str) -> None:
    """From now on note who updates a job's row, under which lease token."""
    engine = open_engine(database_url)
    with engine.begin() as connection:
        for statement in WATCH:
            connection.execute(text(statement))
    engine.dispose()


@dataclass
class Report:
    """What was found: figures, and each invariant that did not hold."""

    broken: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.broken.append(otherwise)


@dataclass(frozen=True)
class Requests:
    """What the target was asked on behalf of one job."""

    n: int
    repeats: int


def read_log(path: Path) -> dict[int, Requests]:
    """Return what the target saw, by the number that each job's template carries."""
    seen: dict[int, Counter[str]] = defaultdict(Counter)
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        mark = str(entry["instruction"] or "").rpartition("#")[2]
        if mark.isdecimal():
            seen[int(mark)][entry["messages_sha256"]] += 1
    return {
        number: Requests(sum(counts.values()), sum(counts.values()) - len(counts))
        for number, counts in seen.items()
    }


def judge(
    works: Sequence[Work],
    ended: Sequence[Ended],
    undisturbed: Mapping[int, Mapping[str, Any]],
    log: Path,
    database_url: str,
    *,
    scorer_faults: int,
) -> Report:
    """Hold everything against what must be true."""
    report, requests = Report(), read_log(log)
    engine = open_engine(database_url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM audit ORDER BY n")).mappings().all()
        found = connection.execute(text("SELECT id, lease_token FROM jobs"))
        tokens = {row.id: row.lease_token for row in found}
        still_open = connection.scalar(text("SELECT count(*) FROM handovers WHERE state = 'sent'"))
    engine.dispose()
    report.require(still_open == 0, f"{still_open} reservations were never settled")
    for work, end in zip(works, ended, strict=True):
        seen = requests.get(work.number, Requests(0, 0))
        _judge_job(report, work, end, undisturbed, seen, tokens[end.job_id], scorer_faults)
    stale = _stale_writes([dict(row) for row in rows])
    report.require(not stale, f"writes under a lost lease: {stale[:5]}")
    report.figures |= {
        "jobs": len(works),
        "claims": sum(tokens.values()),
        "requests": sum(one.n for one in requests.values()),
        "repeated": sum(one.repeats for one in requests.values()),
        "calls in doubt": sum(end.result["usage"]["in_doubt_calls"] for end in ended),
        "writes seen": len(rows),
    }
    return report


def _judge_job(
    report: Report,
    work: Work,
    end: Ended,
    undisturbed: Mapping[int, Mapping[str, Any]],
    seen: Requests,
    claims: int,
    scorer_faults: int,
) -> None:
    usage, name = end.result["usage"], f"job {work.number}"
    status = end.job["status"]
    report.require(status == "succeeded", f"{name} is {status}: {end.job['status_reason']}")
    report.require(
        seen.n <= usage["calls"], f"{name}: {seen.n} requests, {usage['calls']} in the ledger"
    )
    excused = usage["in_doubt_calls"] + usage["failed_calls"]
    report.require(
        seen.repeats <= excused, f"{name}: {seen.repeats} requests repeated, {excused} excused"
    )
    most = HANDED_OVER * (claims - 1 + scorer_faults)
    report.require(
        usage["in_doubt_calls"] <= most,
        f"{name}: {usage['in_doubt_calls']} calls in doubt, at most {most} were handed over",
    )
    if work.calls is not None:
        report.require(
            max(seen.n, usage["calls"]) <= work.calls,
            f"{name}: {seen.n} requests, {usage['calls']} in the ledger, budget {work.calls}",
        )
        return
    same = comparable(dict(end.result)) == comparable(dict(undisturbed[work.number]))
    report.require(same, f"{name}: another result than undisturbed")


def _stale_writes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the writes of runners to jobs whose newest claim was not theirs."""
    owner: dict[str, str] = {}
    allowed: dict[str, int] = {}
    stale = []
    for row in rows:
        writer, job_id = str(row["writer"]), str(row["job_id"])
        if not writer.startswith("runner"):
            continue  # the API's flags need no lease
        is_claim = row["token_after"] != row["token_before"]
        if is_claim:
            owner[job_id] = writer
        is_owned = owner.get(job_id) == writer and row["status_before"] == "running"
        if is_claim or is_owned or allowed.get(job_id) == row["tx"]:  # all of a transaction
            allowed[job_id] = row["tx"]
        else:
            stale.append(f"{dict(row)}, claimed by {owner.get(job_id)}")
    return stale
