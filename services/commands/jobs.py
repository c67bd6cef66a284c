"""Commands about jobs. Each turns its options into one call; what is heavy is imported then."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands import options as opt

if TYPE_CHECKING:
    from services.commands.connection import Place

DEFAULT_DATABASE = "instructzero.db"
DEMO = "demo"


class Format(StrEnum):
    """What `export` writes."""

    JSONL = "jsonl"
    CSV = "csv"


class Status(StrEnum):
    """What `list` can be narrowed to."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


def run(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB.yaml", help="The job, see examples/.")
    ] = None,
    targets: opt.Targets = None,
    database: opt.Database = None,
    generator_url: opt.GeneratorUrl = None,
    scorer_url: opt.ScorerUrl = None,
    model: opt.Model = DEMO,
    as_json: opt.AsJson = False,
    report: opt.ReportFile = None,
    resume: Annotated[
        str | None,
        typer.Option(envvar="IZ_RESUME", metavar="JOB_ID", help="Go on with this job."),
    ] = None,
) -> None:
    """Run a job here and write its report. Ctrl-C stops in order; --resume goes on.

    Exit code: 0 the job succeeded, 1 it failed, 2 the spec or an option is wrong, 130 interrupted.
    """
    from services.commands.console import Screen
    from services.commands.local_run import RunRequest, run_local
    from services.embedded import Options

    request = RunRequest(
        Options(
            database or DEFAULT_DATABASE,
            targets=targets,
            generator_url=generator_url,
            scorer_url=scorer_url,
            model=model,
        ),
        job_file=job,
        resume=resume,
        report=report,
        as_json=as_json,
    )
    raise typer.Exit(asyncio.run(run_local(request, Screen())))


def demo(
    task: Annotated[
        str, typer.Option(envvar="IZ_DEMO_TASK", help="One of the demo model's tasks.")
    ] = "antonym",
    seed: Annotated[int, typer.Option(envvar="IZ_DEMO_SEED", min=0)] = 0,
    report: opt.ReportFile = None,
) -> None:
    """Show a real optimization on the bundled model: no GPU, no key, no network."""
    from services.commands.console import Screen
    from services.commands.demo_job import run_demo

    raise typer.Exit(asyncio.run(run_demo(task, seed, report, Screen())))


def submit(
    job: opt.JobFile,
    url: opt.Url = None,
    database: opt.Database = None,
    targets: opt.Targets = None,
    dry_run: Annotated[
        bool, typer.Option(envvar="IZ_DRY_RUN", help="Check and estimate; store nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option(envvar="IZ_WAIT", help="Show the job until it ends.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            envvar="IZ_IDEMPOTENCY_KEY", help="The same key with the same job is one job."
        ),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Queue a job on a server, or in a database that a server runs jobs of."""
    from services.commands.console import Screen
    from services.commands.remote import SubmitRequest, submit_job

    place = _place(url, database, targets)
    request = SubmitRequest(job, place, dry_run, wait, idempotency_key, as_json)
    raise typer.Exit(asyncio.run(submit_job(request, Screen())))


def watch(job_id: opt.JobId, url: opt.Url = None, database: opt.Database = None) -> None:
    """Show a job until it ends. Exit code: 0 it succeeded, 1 it did not."""
    from services.commands.console import Screen
    from services.commands.remote import watch_job

    raise typer.Exit(asyncio.run(watch_job(_place(url, database), job_id, Screen())))


def result(
    job_id: opt.JobId,
    url: opt.Url = None,
    database: opt.Database = None,
    as_json: opt.AsJson = False,
) -> None:
    """Show the result of a finished job."""
    from services.commands.console import Screen
    from services.commands.remote import show_result

    asyncio.run(show_result(_place(url, database), job_id, Screen(), as_json=as_json))


def list_jobs(
    url: opt.Url = None,
    database: opt.Database = None,
    status: Annotated[Status | None, typer.Option(envvar="IZ_STATUS")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(envvar="IZ_LABEL", metavar="KEY=VALUE", help="May be given several times."),
    ] = None,
    limit: Annotated[int, typer.Option(envvar="IZ_LIMIT", min=1, max=200)] = 50,
    cursor: Annotated[
        str | None, typer.Option(envvar="IZ_CURSOR", help="The `next_cursor` of the page before.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """List jobs, newest first; --json prints the body of GET /jobs."""
    from services.commands.console import Screen
    from services.commands.remote import ListRequest, show_jobs

    request = ListRequest(status, tuple(label or ()), limit, cursor, as_json)
    asyncio.run(show_jobs(_place(url, database), request, Screen()))


def usage(
    url: opt.Url = None,
    database: opt.Database = None,
    since: Annotated[
        str | None,
        typer.Option(
            envvar="IZ_SINCE",
            metavar="WHEN",
            help="Jobs created then or later: 2026-11-01 (UTC), or a time with its offset.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(envvar="IZ_UNTIL", metavar="WHEN", help="Jobs created before then."),
    ] = None,
    group_by: Annotated[
        str, typer.Option(envvar="IZ_GROUP_BY", metavar="job|target|label.KEY")
    ] = "job",
    limit: Annotated[int, typer.Option(envvar="IZ_LIMIT", min=1, max=200)] = 50,
    cursor: Annotated[
        str | None, typer.Option(envvar="IZ_CURSOR", help="The `next_cursor` of the page before.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Show what jobs have cost, by job, target or label; --json prints the body of GET /usage."""
    from services.commands.console import Screen
    from services.commands.remote import UsageRequest, show_usage

    request = UsageRequest(since, until, group_by, limit, cursor, as_json)
    asyncio.run(show_usage(_place(url, database), request, Screen()))


def cancel(job_id: opt.JobId, url: opt.Url = None, database: opt.Database = None) -> None:
    """Cancel a job; what was measured so far is kept."""
    from services.commands.console import Screen
    from services.commands.remote import cancel_job

    asyncio.run(cancel_job(_place(url, database), job_id, Screen()))


def export(
    job_id: opt.JobId,
    format: Annotated[
        Format, typer.Option("--format", envvar="IZ_FORMAT", help="What to write.")
    ] = Format.JSONL,
    output: Annotated[
        Path | None,
        typer.Option(envvar="IZ_OUTPUT", metavar="FILE", show_default="standard output"),
    ] = None,
    url: opt.Url = None,
    database: opt.Database = None,
) -> None:
    """Write every evaluation of a job: instruction, example, answer, score."""
    from services.commands.console import Screen
    from services.commands.remote import export_job

    asyncio.run(export_job(_place(url, database), job_id, format.value, output, Screen()))


def report(
    job_id: opt.JobId,
    output: Annotated[
        Path | None,
        typer.Option(envvar="IZ_OUTPUT", metavar="FILE.html", show_default="runs/JOB_ID.html"),
    ] = None,
    url: opt.Url = None,
    database: opt.Database = None,
) -> None:
    """Write a job's report: one HTML file that needs nothing else."""
    from services.commands.console import Screen
    from services.commands.remote import make_report

    asyncio.run(make_report(_place(url, database), job_id, output, Screen()))


def bench(
    job: opt.JobFile,
    strategies: Annotated[
        str, typer.Option(envvar="IZ_STRATEGIES", metavar="A,B,...", help="What to compare.")
    ] = "default,instructzero,random,ape",
    seeds: Annotated[
        int, typer.Option(envvar="IZ_SEEDS", min=1, max=100, help="Repetitions of each.")
    ] = 1,
    calls: Annotated[
        int | None,
        typer.Option(
            envvar="IZ_CALLS", min=1, show_default="the job's", help="Budget of each job."
        ),
    ] = None,
    targets: opt.Targets = None,
    database: opt.Database = None,
    model: opt.Model = DEMO,
    generator_url: opt.GeneratorUrl = None,
    scorer_url: opt.ScorerUrl = None,
    report: opt.SeriesReport = None,
    yes: opt.Yes = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run one task under several strategies at one budget; the same command goes on later.

    Exit code: 0 every job succeeded, 1 one did not, 2 the job or an option is wrong, 130
    interrupted.
    """
    from services.commands.bench import BenchRequest, run_bench
    from services.commands.console import Screen
    from services.embedded import Options

    options = Options(
        database or DEFAULT_DATABASE,
        targets=targets,
        generator_url=generator_url,
        scorer_url=scorer_url,
        model=model,
    )
    request = BenchRequest(options, job, strategies, seeds, calls, report, as_json, yes)
    raise typer.Exit(asyncio.run(run_bench(request, Screen())))


def paper_tasks(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds induce/*.json and execute/*.json.")
    ],
    strategy: Annotated[str, typer.Option(envvar="IZ_STRATEGY")] = "default",
    calls: Annotated[
        int | None,
        typer.Option(envvar="IZ_CALLS", min=1, show_default="500", help="Budget of each task."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(envvar="IZ_TRIALS", min=1, help="Instructions to try, instead of --calls."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(envvar="IZ_TASKS", metavar="A,B,...", show_default="all of DIR"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(envvar="IZ_TARGET", metavar="NAME", show_default="the only one registered"),
    ] = None,
    seed: Annotated[int, typer.Option(envvar="IZ_SEED", min=0)] = 0,
    targets: opt.Targets = None,
    database: opt.Database = None,
    model: opt.Model = DEMO,
    generator_url: opt.GeneratorUrl = None,
    scorer_url: opt.ScorerUrl = None,
    report: opt.SeriesReport = None,
    yes: opt.Yes = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run the paper's tasks and print its table beside ours; the same command goes on later.

    Exit code: 0 every task has a held-out score, 1 one has none, 2 an option is wrong, 130
    interrupted.
    """
    from services.commands.console import Screen
    from services.commands.paper_tasks import PaperRequest, run_paper_tasks
    from services.embedded import Options

    options = Options(
        database or DEFAULT_DATABASE,
        targets=targets,
        generator_url=generator_url,
        scorer_url=scorer_url,
        model=model,
    )
    request = PaperRequest(
        options, folder, strategy, calls, trials, tasks, target, seed, report, as_json, yes
    )
    raise typer.Exit(asyncio.run(run_paper_tasks(request, Screen())))


def _place(url: str | None, database: str | None, targets: Path | None = None) -> Place:
    from services.commands.connection import Place

    return Place(url, database, targets)
