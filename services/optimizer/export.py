"""Every evaluation of a job as JSON lines or CSV, a chunk in memory at a time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any

from instructzero.contracts import JobSpec
from services.optimizer import reads
from services.optimizer.database import Database
from services.optimizer.jobs import Splits, split_examples
from services.optimizer.reads import Exported
from services.optimizer.sessions import transaction

COLUMNS = (
    "split",
    "trial",
    "arm",
    "source",
    "instruction",
    "z",
    "example",
    "input",
    "expected",
    "answer",
    "score",
    "error",
    "cached",
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "usd",
)


async def export_records(
    job_id: str, spec: JobSpec, database: Database
) -> AsyncIterator[dict[str, Any]]:
    """Yield a record an evaluation: the search's first, then the final check's."""
    splits = split_examples(spec)
    after: tuple[str, int, int] | None = None
    while True:
        async with transaction(database.reads) as session:
            rows = await reads.list_evaluations(session, job_id, after=after)
        for row in rows:
            yield _record(row, splits)
        if len(rows) < reads.CHUNK:
            return
        last = rows[-1].evaluation
        after = (last.split, last.arm, last.example)


def _record(row: Exported, splits: Splits) -> dict[str, Any]:
    evaluation, arm, z = row
    examples = splits.validation if evaluation.split == "validation" else splits.test
    example = examples[evaluation.example]
    values = (
        evaluation.split,
        arm.trial,
        arm.n,
        arm.source,
        arm.text,
        z,
        evaluation.example,
        example.input,
        list(example.output),
        evaluation.answer,
        evaluation.score,
        evaluation.error,
        evaluation.is_cached,
        evaluation.calls,
        evaluation.prompt_tokens,
        evaluation.completion_tokens,
        evaluation.usd,
    )
    return dict(zip(COLUMNS, values, strict=True))


async def json_lines(records: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Yield each record as a line of JSON."""
    async for record in records:
        yield json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


async def csv_lines(records: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Yield a header and each record as a line of CSV; lists and objects are JSON in a cell."""
    yield _csv_line(COLUMNS)
    async for record in records:
        yield _csv_line(
            json.dumps(value, ensure_ascii=False) if isinstance(value, list | bool) else value
            for value in record.values()
        )


def _csv_line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(values)
    return buffer.getvalue()
