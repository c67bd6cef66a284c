"""Opaque cursors of lists: where the last page ended."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from instructzero.contracts import LabelValue
from instructzero.errors import FieldProblem, InvalidRequest

MOST_CHARACTERS = 200
MOST_CHARACTERS_OF_A_GROUP = 4_000
LARGEST = 2**53
_GROUP: TypeAdapter[str] = TypeAdapter(LabelValue)


def after_job(created_at: datetime, job_id: str) -> str:
    """Return the cursor after a job."""
    return _encode([round(created_at.timestamp() * 1e6), job_id])


def read_job_cursor(cursor: str) -> tuple[datetime, str]:
    """Return the (created_at, id) that a cursor stands for.

    Raises:
        InvalidRequest: it is none of ours.
    """
    found = _decode(cursor)
    if not (isinstance(found, list) and len(found) == 2):
        raise _refusal()
    at, job_id = found
    if type(at) is not int or not 0 <= at < LARGEST or not isinstance(job_id, str):
        raise _refusal()
    if not job_id.isascii() or not job_id.isprintable():
        raise _refusal()
    return datetime.fromtimestamp(at / 1e6, UTC), job_id


def after_trial(trial: int) -> str:
    """Return the cursor after a trial."""
    return _encode([trial])


def read_trial_cursor(cursor: str) -> int:
    """Return the trial number that a cursor stands for.

    Raises:
        InvalidRequest: it is none of ours.
    """
    match _decode(cursor):
        case [int(trial)] if 0 <= trial < 2**31 and trial is not True and trial is not False:
            return trial
    raise _refusal()


def after_group(group: str) -> str:
    """Return the cursor after a group of the usage document."""
    return _encode([group])


def read_group_cursor(cursor: str) -> str:
    """Return the group that a cursor stands for.

    Raises:
        InvalidRequest: it is none of ours.
    """
    found = _decode(cursor, at_most=MOST_CHARACTERS_OF_A_GROUP)
    if not (isinstance(found, list) and len(found) == 1):
        raise _refusal()
    try:
        return _GROUP.validate_python(found[0], strict=True)
    except ValidationError as error:
        raise _refusal() from error


def _encode(content: list[int | str]) -> str:
    text = json.dumps(content, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _decode(cursor: str, *, at_most: int = MOST_CHARACTERS) -> object:
    if len(cursor) > at_most:
        raise _refusal()
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _refusal() from error


def _refusal() -> InvalidRequest:
    detail = "is not a cursor of this list; send `next_cursor` of the page before, unchanged"
    return InvalidRequest(
        f"cursor: {detail}", errors=[FieldProblem("/query/cursor", detail)], reason="bad_cursor"
    )
