"""A cluster on paper: what so many jobs a day take, which part saturates first, what it costs.

    python -m benchmarks.scale                        # 10,000 jobs a day
    python -m benchmarks.scale --jobs-per-day 50000 --requests-per-minute 5000

Processor time and sizes come from benchmarks/results/unit_costs.json; what no machine of ours can
measure (the provider's limit and price, a GPU's speed and rent) are assumptions that the result
names. Load comes unevenly: `--peak` is the busiest hour's load over the mean hour's.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, record

mpl.use("Agg")
from matplotlib import pyplot as plt

DAY = 86_400
USABLE = 0.7
"""Of each part's capacity: above it queues grow faster than they are worth."""


@dataclass(frozen=True)
class Assumptions:
    """What is asked of the cluster, and what was not measured."""

    jobs_per_day: float
    calls_per_job: float
    tokens_per_call: float
    peak: float
    requests_per_minute: float
    """What the provider allows, over all keys."""
    seconds_per_call: float
    usd_per_million_tokens: float
    instructions_per_gpu_second: float
    usd_per_gpu_hour: float
    usd_per_core_hour: float
    usd_per_gib_disk_month: float
    usd_per_gib_memory_month: float
    days_kept: float
    days_cached: float


class Part(NamedTuple):
    """One part: how much of what it needs at the peak, and what one unit gives."""

    name: str
    unit: str
    needed: float
    each: float

    @property
    def units(self) -> int:
        """How many to run: enough below USABLE, and two where one may die."""
        spare = 2 if self.name in {"API", "runner", "scorer"} else 1
        return max(spare, math.ceil(self.needed / (self.each * USABLE)))


def parts(given: Assumptions, costs: dict[str, Any]) -> list[Part]:
    """What each part must give at the peak, in its own measure."""
    jobs = given.jobs_per_day / DAY * given.peak  # a second
    calls = jobs * given.calls_per_job
    texts = jobs * costs["instructions_per_job"]
    scale = given.calls_per_job / costs["calls_per_job"]
    return [
        Part("target", "limit of requests", calls, given.requests_per_minute / 60),
        Part("scorer", "core", calls * costs["scorer_cpu_seconds_per_call"], 1.0),
        Part("runner", "core", jobs * costs["runner_cpu_seconds_per_job"] * scale, 1.0),
        Part("API", "core", jobs * costs["api_cpu_seconds_per_job"], 1.0),
        Part("generator", "GPU", texts, given.instructions_per_gpu_second),
    ]


def bill(given: Assumptions, costs: dict[str, Any], needs: list[Part]) -> dict[str, float]:
    """US dollars a day."""
    n_calls = given.jobs_per_day * given.calls_per_job
    cores = sum(part.units for part in needs if part.unit == "core") + 4  # Postgres and Redis
    gpus = sum(part.units for part in needs if part.unit == "GPU")
    kept = stored(given, costs)
    return {
        "paid calls": n_calls * given.tokens_per_call / 1e6 * given.usd_per_million_tokens,
        "GPUs": gpus * 24 * given.usd_per_gpu_hour,
        "cores": cores * 24 * given.usd_per_core_hour,
        "database": kept.database_gib * given.usd_per_gib_disk_month / 30,
        "Redis": kept.redis_gib * given.usd_per_gib_memory_month / 30,
    }


class Stored(NamedTuple):
    """What lies in the stores once as much is thrown away as comes in."""

    database_gib: float
    redis_gib: float


def stored(given: Assumptions, costs: dict[str, Any]) -> Stored:
    """Work out how large the stores become."""
    n_calls = given.jobs_per_day * given.calls_per_job
    each = costs["database_bytes_per_job"] / costs["calls_per_job"]
    return Stored(
        n_calls * each * given.days_kept / 2**30,
        n_calls * costs["redis_bytes_per_answer"] * given.days_cached / 2**30,
    )


def draw(given: Assumptions, costs: dict[str, Any]) -> None:
    """Plot the use of one unit of each part over the load, and the bill over the calls of a job."""
    loads = np.geomspace(100, 1e6, 200)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for index, part in enumerate(parts(given, costs)):
        share = part.needed / part.each / given.jobs_per_day
        left.loglog(loads, loads * share, label=f"{part.name} (one {part.unit})", color=f"C{index}")
    left.axhline(USABLE, color="0.5", lw=0.8, ls="--")
    left.axvline(given.jobs_per_day, color="0.5", lw=0.8, ls=":")
    left.set(xlabel="jobs a day", ylabel="use of one unit at the peak", ylim=(1e-4, 1e2))
    left.set_title("Which part is full first")
    left.legend(fontsize=8)
    sizes = np.array([100, 300, 600, 1_000, 3_000])
    bottoms = np.zeros(len(sizes))
    for name in bill(given, costs, parts(given, costs)):
        heights = []
        for size in sizes:
            changed = Assumptions(**{**asdict(given), "calls_per_job": float(size)})
            heights.append(bill(changed, costs, parts(changed, costs))[name])
        right.bar([str(size) for size in sizes], heights, bottom=bottoms, label=name)
        bottoms += np.array(heights)
    right.set(xlabel="calls of a job", ylabel="US dollars a day")
    right.set_title(f"The bill of {given.jobs_per_day:,.0f} jobs a day")
    right.legend(fontsize=8)
    figure.savefig(RESULTS / "scale.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Work it out, print the table, write the result and its plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    options = {
        "jobs-per-day": 10_000.0, "calls-per-job": 600.0, "tokens-per-call": 150.0, "peak": 3.0,
        "requests-per-minute": 30_000.0, "seconds-per-call": 1.0, "usd-per-million-tokens": 0.2,
        "instructions-per-gpu-second": 50.0, "usd-per-gpu-hour": 2.0, "usd-per-core-hour": 0.04,
        "usd-per-gib-disk-month": 0.2, "usd-per-gib-memory-month": 3.0, "days-kept": 90.0,
        "days-cached": 30.0,
    }  # fmt: skip
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    given = Assumptions(**vars(parser.parse_args()))
    costs = json.loads((RESULTS / "unit_costs.json").read_text(encoding="utf-8"))
    needs = parts(given, costs)
    money = bill(given, costs, needs)
    first = max(needs, key=lambda part: part.needed / part.each)
    in_flight = needs[0].needed * given.seconds_per_call
    kept = stored(given, costs)
    table = Table("part", "needed at the peak", "one unit gives", "units", "use of one")
    for part in needs:
        table.add_row(
            part.name,
            f"{part.needed:,.2f}",
            f"{part.each:,.2f} ({part.unit})",
            str(part.units),
            f"{part.needed / part.each:.0%}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"first to saturate: {first.name}; calls in flight at the peak: {in_flight:,.0f}; "
        f"database: {kept.database_gib:,.0f} GiB; Redis: {kept.redis_gib:,.0f} GiB"
    )
    for name, usd in money.items():
        console.print(f"{name:>12}  {usd:10,.2f} US dollars a day")
    draw(given, costs)
    path = record(
        "scale",
        {
            "assumptions": asdict(given),
            "parts": [
                {**part._asdict(), "units": part.units, "use_of_one": part.needed / part.each}
                for part in needs
            ],
            "first_to_saturate": first.name,
            "calls_in_flight_at_peak": in_flight,
            "stored": kept._asdict(),
            "usd_per_day": money,
        },
    )
    console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
