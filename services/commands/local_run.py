"""`run` and `demo`: one job in this process, from its spec to its report."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass
from pathlib import Path

from instructzero.client import AsyncClient
from instructzero.contracts import Job, JobSpec, JobStatus
from instructzero.errors import Conflict, InvalidRequest, InvalidSpec, NotFound
from services.commands.connection import DEFAULT_DATABASE, Local, open_local
from services.commands.console import Screen
from services.commands.following import follow
from services.commands.job_files import load_job
from services.commands.record import read_record, write_report
from services.commands.signals import INTERRUPTED, Stopper
from services.embedded import DEMO, Options

SECONDS_BETWEEN_CLAIMS = 1.0
STOPPING = "Stopping: answers that are paid for are kept. Ctrl-C again quits at once."


@dataclass(frozen=True)
class RunRequest:
    """What `run` was asked to do; either a spec or a job to go on with is there."""

    options: Options
    job_file: Path | None = None
    spec: JobSpec | None = None
    resume: str | None = None
    report: Path | None = None
    as_json: bool = False

    def resume_command(self, job_id: str) -> str:
        """Return the command that goes on with the job."""
        options = self.options
        words: list[str | Path] = ["instructzero", "run"]
        if self.job_file is not None:
            words.append(self.job_file)
        for name, value, default in (
            ("--targets", options.targets, None),
            ("--database", options.database, DEFAULT_DATABASE),
            ("--generator-url", options.generator_url, None),
            ("--scorer-url", options.scorer_url, None),
            ("--model", options.model, DEMO),
            ("--report", self.report, None),
        ):
            if value is not None and value != default:
                words += [name, value]
        if self.as_json:
            words.append("--json")
        return shlex.join(map(str, [*words, "--resume", job_id]))


async def run_local(request: RunRequest, screen: Screen) -> int:
    """Run one job in this process and return the exit code.

    Raises:
        InvalidRequest: the spec, the targets or the model cannot be used.
    """
    spec = request.spec
    if spec is None and request.job_file is not None:
        spec = load_job(request.job_file)
    if spec is None and request.resume is None:
        raise InvalidRequest("name a job file, or a job to go on with: --resume JOB_ID")
    check_targets(spec, request.options)
    return await _run(request, spec, screen, Stopper(STOPPING))


def check_targets(spec: JobSpec | None, options: Options) -> None:
    """Refuse an unknown target before a model is loaded.

    Raises:
        InvalidRequest: the targets file is wrong, or does not hold the job's target.
    """
    if options.scorer_url is not None:
        return
    from services.embedded import registered_targets

    targets = registered_targets(options)
    if spec is not None:
        try:
            targets.get(spec.target)
        except InvalidRequest as error:
            hint = "" if options.targets else "; give a targets file with --targets"
            raise InvalidSpec(f"target: {error.detail}{hint}") from error


async def _run(request: RunRequest, spec: JobSpec | None, screen: Screen, stopper: Stopper) -> int:
    if request.options.generator_url is None:
        screen.say(f"Loading the generator model ({request.options.model}) …", style="dim")
    async with open_local(request.options, with_runner=True) as local:
        if stopper.is_asked:
            screen.say("Stopped before the job began; nothing was spent.")
            return INTERRUPTED
        job = await _find_or_create(request, spec, local.client, screen)
        job = await work(local, job, screen, stopper)
        return await _end(request, job, local.client, screen)


async def _find_or_create(
    request: RunRequest, spec: JobSpec | None, client: AsyncClient, screen: Screen
) -> Job:
    if request.resume is not None:
        job = await client.get(request.resume)
        if spec is not None and spec.spec_hash() != job.spec_hash:
            raise InvalidRequest(
                f"{request.job_file} is not what {job.id} was made from; leave the file out to go "
                "on with the job, or leave --resume out to start a new one"
            )
        if job.status is JobStatus.PAUSED:
            job = await client.resume(job.id)
        if not job.status.is_finished:
            screen.say(f"Going on with {job.id}: {job.usage.calls:,} calls are paid for already.")
        return job
    assert spec is not None  # noqa: S101 - run_local saw to it
    screen.estimate((await client.estimate(spec)).estimate)
    job = await client.create(spec)
    screen.say(f"Job {job.id}", style="dim")
    return job


async def work(local: Local, job: Job, screen: Screen, stopper: Stopper) -> Job:
    """Run the job and show it until it stands still, or until somebody asks to stop."""
    if job.status.is_finished:
        return job
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_keep_running(local, job.id, stopper))
        draining = group.create_task(_drain_when_asked(local, stopper))
        with screen.progress() as progress:
            async for seen in follow(local.client, job.id, stop=running.done):
                if not stopper.is_asked:
                    progress.update(seen)
        await running
        draining.cancel()
    return await local.client.get(job.id)


async def _keep_running(local: Local, job_id: str, stopper: Stopper) -> None:
    """Claim the job until it is finished or paused; each claim without progress is counted."""
    while not stopper.is_asked:
        was_claimed = await local.parts.run_job(job_id)
        job = await local.client.get(job_id)
        if job.status.is_finished or job.status is JobStatus.PAUSED or stopper.is_asked:
            return
        if not was_claimed and job.status is JobStatus.QUEUED:
            raise Conflict(
                "the job was made by another version of this program and cannot go on with this one"
            )
        await asyncio.sleep(SECONDS_BETWEEN_CLAIMS)  # another runner may hold its lease


async def _drain_when_asked(local: Local, stopper: Stopper) -> None:
    await stopper.wait()
    if local.parts.runner is not None:
        local.parts.runner.drain()


async def _end(request: RunRequest, job: Job, client: AsyncClient, screen: Screen) -> int:
    """Show how it ended, write the report, and return the exit code."""
    if not job.status.is_finished:
        if job.status_reason is not None:
            screen.problem(job.status_reason.message)
        screen.say(
            f"{job.id} is {job.status}; {job.usage.calls:,} calls are paid for and kept. "
            "Go on with:"
        )
        screen.say(f"  {request.resume_command(job.id)}", style="bold")
        return 1 if job.status is JobStatus.PAUSED else INTERRUPTED
    record = await read_record(client, job.id)
    if record.result is None:
        raise NotFound("the job's result is gone: was it deleted?")
    if request.as_json:  # before the report, which may fail: the result is what was paid for
        screen.write(record.result.model_dump_json(indent=2))
    else:
        screen.result(record.job, record.result)
    try:
        screen.say(f"Report: {await write_report(record, request.report)}")
    except InvalidRequest as error:
        screen.problem(error.detail)
    return 0 if job.status is JobStatus.SUCCEEDED else 1
