"""What a job is expected to cost, what its runner has learned of that, and the judge's part of it.

Only adds columns that older processes leave alone: jobs that an older API stored have no outlook
and so no forecast, calls that an older runner made are all the target's.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new."""
    for name in ("outlook", "learned"):
        op.add_column("jobs", sa.Column(name, sa.JSON(), nullable=True))
    for name in ("target", "judge"):
        op.add_column("jobs", sa.Column(name, sa.String(length=100), nullable=True))
    for name, kind in (
        ("judge_calls", sa.Integer()),
        ("judge_failed_calls", sa.Integer()),
        ("judge_prompt_tokens", sa.BigInteger()),
        ("judge_completion_tokens", sa.BigInteger()),
        ("judge_usd", sa.Float()),
    ):
        op.add_column("jobs", sa.Column(name, kind, server_default="0", nullable=False))
