"""Run the whole system as processes, harm it by a seeded schedule, and say whether all held.

    python -m tests.faults --seed 1 --minutes 10

First the jobs run undisturbed; then once more while parts are killed, frozen, drained and
restarted about every two seconds, with nothing left in the cache of answers. Exit status 0: every
invariant held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.record import RESULTS, commit, record
from tests.faults.audit import Report, judge, watch_writes
from tests.faults.cluster import Cluster, Size, running, servers
from tests.faults.schedule import Faults
from tests.faults.system import IN_FLIGHT
from tests.faults.workload import Client, Ended, Work, make_work

CALLS_OF_A_JOB = 60
SHARE_OF_TIME_FOR_CALLS = 0.5
MOST_LATENCY_MS = 1_500.0
ARRIVING = 0.8
"""Of the time: the last jobs come so late that there are jobs to harm until the end."""
FULL = Size()
GRACE_SECONDS = 900.0
"""How long the jobs may go on when nothing harms them any more."""


@dataclass(frozen=True)
class Plan:
    """What one run of the harness does."""

    seed: int
    seconds: float
    n_jobs: int = 40
    every_seconds: float = 2.0
    size: Size = FULL

    @property
    def latency_ms(self) -> float:
        """Slow enough a target that the jobs last about as long as the faults."""
        share = SHARE_OF_TIME_FOR_CALLS * self.seconds * IN_FLIGHT
        return min(1000 * share / (self.n_jobs * CALLS_OF_A_JOB), MOST_LATENCY_MS)


async def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> Report:
    """Run the jobs undisturbed and disturbed, and judge."""
    works = make_work(plan.n_jobs, plan.seed)
    with servers() as (postgres, redis), running(folder, postgres, redis, plan.size) as cluster:
        client = Client(cluster.api_urls, plan.seed)
        bounded = [work for work in works if work.calls is None]
        say(f"undisturbed: {len(bounded)} jobs bounded by trials")
        calm = await client.do_all(bounded, "calm")
        redis.flush()  # what was paid is forgotten
        await asyncio.to_thread(cluster.restart_target, plan.latency_ms)
        watch_writes(cluster.database_url)
        say(f"disturbed: {len(works)} jobs, a fault about every {plan.every_seconds:g} s")
        faults = Faults(cluster, plan.seed, say, every_seconds=plan.every_seconds)
        stormy = await _weather(plan, cluster, faults, client, works)
        await client.aclose()
        await asyncio.to_thread(cluster.target.terminate)
        results: Mapping[int, Mapping[str, Any]] = {
            work.number: end.result for work, end in zip(bounded, calm, strict=True)
        }
        report = judge(
            works, stormy, results, cluster.target_log, cluster.database_url,
            scorer_faults=faults.of("scorer", "redis"),
        )  # fmt: skip
    report.figures["faults"] = dict(faults.done)
    report.figures["requests to the API that failed"] = client.n_failed
    return report


async def _weather(
    plan: Plan, cluster: Cluster, faults: Faults, client: Client, works: Sequence[Work]
) -> list[Ended]:
    """Let the faults happen while the jobs are done; then let the rest be done in peace."""
    working = asyncio.create_task(
        client.do_all(works, "stormy", over_seconds=ARRIVING * plan.seconds)
    )
    await faults.strike(plan.seconds, is_over=working.done)
    faults.say("no more faults: what is down is started, the jobs go on")
    await asyncio.to_thread(cluster.revive)
    async with asyncio.timeout(GRACE_SECONDS):
        return await working


def keep_record(plan: Plan, report: Report) -> Path:
    """Add a run to the result file, beside those with other seeds."""
    earlier = RESULTS / "faults.json"
    runs = json.loads(earlier.read_text())["runs"] if earlier.exists() else {}
    runs[str(plan.seed)] = {
        "commit": commit(),
        "minutes": plan.seconds / 60,
        "every_seconds": plan.every_seconds,
        "broken": report.broken,
        **report.figures,
    }
    return record("faults", {"runs": dict(sorted(runs.items(), key=lambda run: int(run[0])))})


def main() -> int:
    """Read the options, run, and show what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--keep", type=Path, help="folder for logs; default: one that is removed")
    parser.add_argument(
        "--record", action="store_true", help="keep what was seen in benchmarks/results/faults.json"
    )
    options = parser.parse_args()
    console, began = Console(), time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end every part on the way out
    plan = Plan(options.seed, options.minutes * 60, options.jobs, options.every)
    with tempfile.TemporaryDirectory(prefix="iz-faults-") as folder:
        report = asyncio.run(run(plan, options.keep or Path(folder), console.print))
    report.figures["seconds"] = round(time.monotonic() - began)
    console.print_json(data=report.figures)
    if options.record:
        console.print(str(keep_record(plan, report)))
    for what in report.broken:
        console.print(f"BROKEN: {what}", style="bold red")
    verdict = "every invariant held" if not report.broken else f"{len(report.broken)} broken"
    console.print(f"seed {plan.seed}: {verdict}, {time.monotonic() - began:.0f} s", style="bold")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
