"""The default search through the whole product on our landscapes: REST, journal, HTTP, final check.

    python -m benchmarks.product --smoke     # one small job, writes nothing
    python -m benchmarks.product

`instructzero serve` runs the jobs; generator and target are a server that plays landscapes
(`landscape_server.py`) and counts the calls it gets, the final check's included. The true score of
the recommended instruction is set beside that of the strategy driven directly, with the same number
of calls for its search, on the same landscapes.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.ablation import difference
from benchmarks.landscape_server import (
    N_TEST,
    N_VALIDATION,
    landscape_of,
    landscape_server,
    task_of,
    text_number,
)
from benchmarks.landscapes import play
from benchmarks.record import record
from instructzero import Client
from instructzero.contracts import JobStatus
from instructzero.errors import InstructZeroError
from services.optimizer.search.report import plan_final_check
from services.optimizer.search.strategy import Problem

FIRST_SEED = 300_000
KINDS = ("easy", "medium", "hard")
BUDGETS = (300, 600, 1200)
IN_FLIGHT = 16


class Played(NamedTuple):
    """One landscape under one budget.

    Attributes:
        kind: of the landscape.
        budget: calls of the whole job.
        calls: that the target counted.
        product: true score of the product's winner over the best attainable.
        direct: the same of the strategy driven directly.
        covered: whether the reported 90 % interval holds the winner's true score.
    """

    kind: str
    budget: int
    calls: int
    product: float
    direct: float
    covered: bool


@contextmanager
def product(folder: Path, landscapes: str) -> Iterator[Client]:
    """Serve the product with the landscapes as its generator and target."""
    connection = {
        "base_url": f"{landscapes}/v1",
        "model": "landscapes",
        "limits": {"in_flight": IN_FLIGHT},
        "sampling": {"temperature": 0, "max_tokens": 16},
    }
    targets = folder / "targets.yaml"
    targets.write_text(yaml.safe_dump({"targets": {"landscapes": connection}}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        str(Path(sys.executable).parent / "instructzero"), "serve", "--port", port,
        "--targets", str(targets), "--generator-url", landscapes,
    ]  # fmt: skip
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)  # noqa: S603
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            wait_for(client, process, folder / "serve.log")
            yield client
    finally:
        process.terminate()
        process.wait()


def wait_for(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client.targets()
        except InstructZeroError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the product did not start:\n{log.read_text()}") from None
            time.sleep(0.2)
        else:
            return


def run_job(client: Client, landscapes: str, key: str, budget: int, seed: int) -> Played:
    """Run one job through the product, and the strategy alone."""
    before = httpx.get(f"{landscapes}/calls").json().get(key, 0)
    spec = {
        "name": "landscape",
        "task": task_of(key),
        "target": "landscapes",
        "budget": {"calls": budget},
        "seed": seed,
        "cache": False,
    }
    job = client.wait(client.create(spec).id)
    if job.status is not JobStatus.SUCCEEDED:
        raise RuntimeError(f"the job on {key} ended as {job.status}: {job.status_reason}")
    best = client.result(job.id).best
    calls = httpx.get(f"{landscapes}/calls").json()[key] - before
    landscape = landscape_of(key)
    text = text_number(best.instruction) if best is not None else None
    if best is None or best.test is None or text is None:
        raise RuntimeError(f"the job on {key} has no measured winner")
    truth = float(landscape.truth[text])
    search = budget - plan_final_check(budget, N_TEST, has_baseline=False).reserved_calls
    problem = Problem(landscape.dim, N_VALIDATION, seed, calls=search, calls_per_round=IN_FLIGHT)
    alone = play("default", landscape, search, seed, problem=problem)
    return Played(
        kind=key.partition("/")[0],
        budget=budget,
        calls=calls,
        product=truth / landscape.best,
        direct=alone.truth[-1] / landscape.best,
        covered=bool(best.test.interval[0] <= truth <= best.test.interval[1]),
    )


def summarise(played: Sequence[Played]) -> dict[str, Any]:
    """Return one row of the table."""
    return {
        "jobs": len(played),
        "product": float(np.mean([p.product for p in played])),
        "direct": float(np.mean([p.direct for p in played])),
        "difference": difference([p.product for p in played], [p.direct for p in played]),
        "most_calls": max(p.calls for p in played),
        "covered": float(np.mean([p.covered for p in played])),
    }


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="one small job, writes nothing")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args(None if arguments is None else list(arguments))
    seeds: int = options.seeds
    kinds: tuple[str, ...] = KINDS
    budgets: tuple[int, ...] = BUDGETS
    if options.smoke:
        seeds, kinds, budgets = 1, KINDS[:1], (150,)
    jobs = [
        (f"{kind}/{FIRST_SEED + seed}", budget, seed)
        for budget in budgets
        for kind in kinds
        for seed in range(seeds)
    ]
    console = Console(width=120)
    with (
        tempfile.TemporaryDirectory() as folder,
        landscape_server() as landscapes,
        product(Path(folder), landscapes) as client,
    ):
        played = [run_job(client, landscapes, *job) for job in track(jobs, "jobs", console=console)]
    table = Table(title="true score of the winner over the best attainable")
    for heading in ("landscape", "budget", "product", "direct", "difference", "most calls"):
        table.add_column(heading, justify="right")
    rows = {}
    for kind in kinds:
        for budget in budgets:
            row = summarise([p for p in played if (p.kind, p.budget) == (kind, budget)])
            rows[f"{kind}/{budget}"] = row
            apart = row["difference"]
            table.add_row(
                kind,
                str(budget),
                f"{row['product']:.3f}",
                f"{row['direct']:.3f}",
                f"{apart['mean']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]",
                str(row["most_calls"]),
            )
    console.print(table)
    overall = summarise(played)
    console.print(overall)
    if options.smoke:
        return
    content = {"seeds": seeds, "in_flight": IN_FLIGHT, "rows": rows, "all": overall}
    console.print(f"written: benchmarks/results/{record('product', content).name}")


if __name__ == "__main__":
    main()
