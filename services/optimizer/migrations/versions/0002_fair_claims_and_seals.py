"""Indexes for claims and lists, checksums of the journal's rows, lines charged to a handover.

Only adds columns that older runners leave empty, so that it may run under a working system.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new, and drop the index that nothing uses any more."""
    for table in ("points", "arms", "evaluations"):
        op.add_column(table, sa.Column("seal", sa.String(length=24), nullable=True))
    op.add_column(
        "handovers", sa.Column("n_lines", sa.Integer(), server_default="0", nullable=False)
    )
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        ["tenant", "created_at", "id"],
        sqlite_where=sa.text("status = 'queued'"),
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "ix_jobs_leases",
        "jobs",
        ["lease_expires_at", "tenant"],
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index("ix_jobs_status", "jobs", ["status", "created_at", "id"])
    op.drop_index("ix_jobs_claimable", table_name="jobs")
