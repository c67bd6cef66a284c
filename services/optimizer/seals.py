"""Checksums of the journal's rows: one that was edited by hand is not replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from services.optimizer.tables import ArmRow, EvaluationRow, PointRow

Row = TypeVar("Row", PointRow, ArmRow)
SealedRow = PointRow | ArmRow | EvaluationRow

SEALED: Mapping[type[Any], Sequence[str]] = {
    PointRow: ("job_id", "n", "step", "z", "note", "arm", "text", "rejected"),
    ArmRow: ("job_id", "n", "text", "source", "step", "point"),
    EvaluationRow: ("job_id", "split", "arm", "example", "step", "score", "answer", "error"),
}
"""The columns that are written once, and that a replay depends on."""


def seal(table: type[Any], values: Mapping[str, Any]) -> str:
    """Return the checksum that a row of the journal carries."""
    canonical = json.dumps([values.get(name) for name in SEALED[table]], separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=12).hexdigest()


def sealed(row: Row) -> Row:
    """Give a new point or arm its checksum, and return it."""
    row.seal = seal(type(row), vars(row))
    return row


def is_intact(row: SealedRow) -> bool:
    """Whether a row is as it was stored; one stored before rows had a checksum is taken as is."""
    return row.seal is None or row.seal == seal(type(row), vars(row))
