"""SQLAlchemy tables: jobs, the journal of decisions, what came of them, and the ledger of calls.

Times are microseconds since the epoch (UTC), always the database's own clock (`now`), so that both
dialects compare them the same way. JSON columns hold plain JSON.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from instructzero.contracts import JobSpec

ALGO_VERSION = 1
"""Raised when the meaning of a journaled decision changes; a runner refuses jobs of another one."""


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as microseconds since the epoch."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> int | None:
        """Store a datetime (or an integer that already is one)."""
        if value is None:
            return None
        return value if isinstance(value, int) else round(value.timestamp() * 1e6)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Read it back as an aware datetime."""
        return None if value is None else datetime.fromtimestamp(int(value) / 1e6, UTC)


class now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, in microseconds since the epoch."""

    type = Instant()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


def microseconds(seconds: float) -> int:
    """Return a duration in the unit of `Instant`."""
    return round(seconds * 1e6)


class Base(DeclarativeBase):
    """Declarative base of all tables."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        dict[str, Any]: JSON,
        list[Any]: JSON,
        datetime: Instant,
        str: Text,
    }


class JobRow(Base):
    """One job: its spec, status, lease, flags and running totals of the ledger.

    The judge's numbers are part of those without `judge`. `target` and `judge` repeat the spec,
    which is too large to read for a sum over many jobs; null: stored by a version that did not know
    them. `outlook` is what the job was expected to cost, `learned` what its runner knows of that.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "status IN ('queued','running','paused','succeeded','failed','cancelled')",
            name="ck_jobs_status",
        ),
        CheckConstraint("reserved_calls >= 0", name="ck_jobs_reserved"),
        Index("ix_jobs_newest", "created_at", "id"),
        Index("ix_jobs_status", "status", "created_at", "id"),
        Index(
            "ix_jobs_queue",
            "tenant",
            "created_at",
            "id",
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_leases",
            "lease_expires_at",
            "tenant",
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(16), default="queued")
    status_reason: Mapped[dict[str, Any] | None]
    stop_reason: Mapped[str | None]
    conditions: Mapped[list[Any]] = mapped_column(JSON, default=list)
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    pause_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    spec: Mapped[dict[str, Any]]
    spec_hash: Mapped[str] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    labels: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    target: Mapped[str | None] = mapped_column(String(100))
    judge: Mapped[str | None] = mapped_column(String(100))
    outlook: Mapped[dict[str, Any] | None]
    learned: Mapped[dict[str, Any] | None]
    algo_version: Mapped[int] = mapped_column(Integer, default=ALGO_VERSION)
    version: Mapped[int] = mapped_column(Integer, default=1)
    fingerprint: Mapped[str | None]
    runner_id: Mapped[str | None]
    lease_token: Mapped[int] = mapped_column(Integer, default=0)
    lease_expires_at: Mapped[datetime | None]
    fruitless_claims: Mapped[int] = mapped_column(Integer, default=0)
    step: Mapped[int] = mapped_column(Integer, default=0)
    n_points: Mapped[int] = mapped_column(Integer, default=0)
    n_arms: Mapped[int] = mapped_column(Integer, default=0)
    n_trials: Mapped[int] = mapped_column(Integer, default=0)
    n_evaluations: Mapped[int] = mapped_column(Integer, default=0)
    n_events: Mapped[int] = mapped_column(Integer, default=0)
    calls: Mapped[int] = mapped_column(Integer, default=0)
    cached_calls: Mapped[int] = mapped_column(Integer, default=0)
    failed_calls: Mapped[int] = mapped_column(Integer, default=0)
    in_doubt_calls: Mapped[int] = mapped_column(Integer, default=0)
    refused_answers: Mapped[int] = mapped_column(Integer, default=0)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    usd: Mapped[float] = mapped_column(Float, default=0.0)
    judge_calls: Mapped[int] = mapped_column(Integer, server_default="0")
    judge_failed_calls: Mapped[int] = mapped_column(Integer, server_default="0")
    judge_prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    judge_completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    judge_usd: Mapped[float] = mapped_column(Float, server_default="0")
    in_doubt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    in_doubt_usd: Mapped[float] = mapped_column(Float, default=0.0)
    reserved_calls: Mapped[int] = mapped_column(Integer, default=0)
    reserved_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    reserved_usd: Mapped[float] = mapped_column(Float, default=0.0)
    best: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    @classmethod
    def of(cls, job_id: str, spec: JobSpec, **columns: Any) -> Self:
        """Return the row of a new job; `columns` are what its spec does not say."""
        return cls(
            id=job_id,
            name=spec.name,
            tenant=spec.tenant,
            spec=spec.model_dump(mode="json"),
            spec_hash=spec.spec_hash(),
            seed=spec.seed,
            labels=dict(spec.labels),
            target=spec.target,
            judge=spec.metric.target,
            **columns,
        )


class IdempotencyRow(Base):
    """A key that came with a POST, and the job it made."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(default=now())


class StepRow(Base):
    """One journaled decision, written before anything depends on it.

    `kind` is `search`, `baseline` or `final`; `checksum` is the SHA-256 of the canonical decision.
    """

    __tablename__ = "steps"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    decision: Mapped[dict[str, Any]]
    checksum: Mapped[str] = mapped_column(String(64))
    snapshot: Mapped[dict[str, Any] | None]
    is_done: Mapped[bool] = mapped_column(Boolean, default=False)
    lease_token: Mapped[int] = mapped_column(Integer)
    decided_at: Mapped[datetime] = mapped_column(default=now())
    done_at: Mapped[datetime | None]


class PointRow(Base):
    """A latent point and what the generator wrote for it; `n` counts from 0 in proposed order."""

    __tablename__ = "points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    n: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(Integer)
    z: Mapped[list[Any]] = mapped_column(JSON)
    note: Mapped[dict[str, Any] | None]
    arm: Mapped[int | None] = mapped_column(Integer)
    text: Mapped[str]
    rejected: Mapped[str | None]
    tokens: Mapped[int] = mapped_column(Integer, default=0)
    seal: Mapped[str | None] = mapped_column(String(24))


class ArmRow(Base):
    """A distinct instruction text; `trial` is its number among those tried, in order, or null.

    `source`: soft_prompt, baseline, given or empty (the empty instruction of the final check).
    """

    __tablename__ = "arms"
    __table_args__ = (Index("ix_arms_trial", "job_id", "trial"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    n: Mapped[int] = mapped_column(Integer, primary_key=True)
    text: Mapped[str]
    source: Mapped[str] = mapped_column(String(12))
    step: Mapped[int] = mapped_column(Integer)
    point: Mapped[int | None] = mapped_column(Integer)
    n_points: Mapped[int] = mapped_column(Integer, default=0)
    trial: Mapped[int | None] = mapped_column(Integer)
    trial_step: Mapped[int | None] = mapped_column(Integer)
    seal: Mapped[str | None] = mapped_column(String(24))


class EvaluationRow(Base):
    """One answer: an arm on an example of `validation` or `test`. Score is null if it failed."""

    __tablename__ = "evaluations"
    __table_args__ = (
        ForeignKeyConstraint(
            ["job_id", "arm"], ["arms.job_id", "arms.n"], ondelete="CASCADE", name="fk_eval_arm"
        ),
    )

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    split: Mapped[str] = mapped_column(String(10), primary_key=True)
    arm: Mapped[int] = mapped_column(Integer, primary_key=True)
    example: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(Integer)
    score: Mapped[float | None] = mapped_column(Float)
    answer: Mapped[str]
    error: Mapped[str | None]
    is_refused: Mapped[bool] = mapped_column(Boolean, default=False)
    is_cached: Mapped[bool] = mapped_column(Boolean, default=False)
    calls: Mapped[int] = mapped_column(Integer, default=0)
    failed_calls: Mapped[int] = mapped_column(Integer, default=0)
    prompt_tokens: Mapped[int] = mapped_column(Integer, default=0)
    completion_tokens: Mapped[int] = mapped_column(Integer, default=0)
    usd: Mapped[float | None] = mapped_column(Float)
    latency_ms: Mapped[float | None] = mapped_column(Float)
    stored_at: Mapped[datetime] = mapped_column(default=now())
    seal: Mapped[str | None] = mapped_column(String(24))


class HandoverRow(Base):
    """Examples handed to the scorer, with what was reserved for them: a line of the ledger.

    `state`: sent (handed over, calls may be in flight), done, or in_doubt (its runner died;
    what was reserved and not accounted for is charged). `n_lines` counts the scorer's lines that
    were charged, so that a repeated commit charges none twice.
    """

    __tablename__ = "handovers"
    __table_args__ = (
        CheckConstraint("state IN ('sent','done','in_doubt')", name="ck_handovers_state"),
        Index(
            "ix_handovers_open",
            "job_id",
            sqlite_where=text("state = 'sent'"),
            postgresql_where=text("state = 'sent'"),
        ),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    n: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(Integer)
    arm: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(8), default="sent")
    reserved_calls: Mapped[int] = mapped_column(Integer)
    reserved_tokens: Mapped[int] = mapped_column(BigInteger)
    reserved_usd: Mapped[float] = mapped_column(Float)
    used_calls: Mapped[int] = mapped_column(Integer, default=0)
    n_lines: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    lease_token: Mapped[int] = mapped_column(Integer)
    sent_at: Mapped[datetime] = mapped_column(default=now())


class EventRow(Base):
    """Something that happened to a job, in order."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now())
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class AnswerRow(Base):
    """A paid answer of the embedded mode's cache, by the hash of all that determines it."""

    __tablename__ = "answers"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    content: Mapped[dict[str, Any]]
    stored_at: Mapped[datetime] = mapped_column(default=now())
