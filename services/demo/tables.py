"""The tables of the demo model's document, written from its evaluation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from instructzero.errors import NotFound

_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    **{f"grade {n}": (lambda row, n=n: row["grades"][n]) for n in range(5)},  # type: ignore[misc]
    "by rule": lambda row: row["agreement"],
    "related": lambda row: row["related"],
    "unrelated": lambda row: row["unrelated"],
    "new inputs": lambda row: row["held_out_inputs"],
    "new wordings": lambda row: row["held_out_wordings"],
    "by hand": lambda row: fmean(row["asked"]),
    "empty": lambda row: row["empty"],
}


def write_tables(found: Mapping[str, Any], document: Path) -> None:
    """Replace what stands between the document's markers.

    Raises:
        NotFound: the document or one of its markers is missing.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"{document}: cannot be read ({error.strerror})") from error
    tables = {
        "facts": _facts(found),
        "losses": _losses(found),
        "executor": _executor(found["executor"]),
        "landscape": _landscape(found["landscape"]),
    }
    for name, table in tables.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, n_replaced = pattern.subn(lambda m, t=table: m[1] + t + m[2], text)  # type: ignore[misc]
        if n_replaced != 1:
            raise NotFound(f"{document}: needs `<!-- {name} -->` and `<!-- end -->` once")
    document.write_text(text, encoding="utf-8")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _facts(found: Mapping[str, Any]) -> str:
    model, training = found["model"], found["training"]
    rows = {
        "parameters": f"{model['parameters']:,}",
        "vocabulary": f"{model['vocabulary']:,}",
        "weights file": f"{model['bytes'] / 1e6:.1f} MB",
        "standard deviation of the embedding table": f"{model['embedding_std']:.3f}",
        "training": f"{training['steps']:,} steps from seed {training['seed']}, "
        f"{training['minutes']:.0f} minutes",
    }
    return _table(("fact", "value"), rows.items())


def _losses(found: Mapping[str, Any]) -> str:
    names = ("step", "executor", "generator", "readouts", "tasks")
    rows = ([f"{row[name]:,}" for name in names] for row in found["training"]["losses"])
    return _table(("step", "executor", "generator", "read-outs (head)", "tasks (head)"), rows)


def _executor(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        [task, *map(_share, (get(row) for get in _COLUMNS.values()))] for task, row in rows.items()
    ]
    means = []
    for get in _COLUMNS.values():
        means.append(_share(_mean(get(row) for row in rows.values())))
    return _table(("task", *_COLUMNS), [*lines, ["**mean**", *means]])


def _landscape(rows: Mapping[str, Mapping[str, Any]]) -> str:
    counts = list(next(iter(rows.values()))["best_of"])
    names = ("well_formed", "own_task", "good")
    head = ("task", "texts", "well formed", "own task", "good", *(f"best of {n}" for n in counts))

    def line(label: str, chosen: list[Mapping[str, Any]]) -> list[str]:
        shares = [_share(_mean(row[name] for row in chosen)) for name in names]
        best = [_share(_mean(row["best_of"][n] for row in chosen)) for n in counts]
        return [label, f"{fmean(row['distinct'] for row in chosen):.0f}", *shares, *best]

    lines = [line(task, [row]) for task, row in rows.items()]
    return _table(head, [*lines, line("**mean**", list(rows.values()))])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
