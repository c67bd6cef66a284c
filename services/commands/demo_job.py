"""The demo: a real job on the bundled model, told step by step."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from instructzero.contracts import Budget, Example, JobSpec, TaskSpec
from instructzero.errors import InvalidRequest
from services.commands.console import Screen
from services.commands.local_run import RunRequest, run_local
from services.demo.corpus import PHRASES, TASKS, Pair, demo_task
from services.embedded import DEMO, Options

FOLDER = Path("runs")
CALLS = 600
WEAK_GRADE = 2
"""A baseline that means roughly the right thing: about three in five inputs are answered well."""
VERB = "Give"


def demo_spec(task: str, seed: int) -> JobSpec:
    """Return the demo's job.

    Raises:
        InvalidRequest: the demo model knows no such task.
    """
    if task not in TASKS:
        raise InvalidRequest(f"the demo model knows no such task; it knows {', '.join(TASKS)}")
    exemplars, validation, test = demo_task(task, seed=seed)
    return JobSpec(
        name=f"demo: {task}",
        task=TaskSpec(
            exemplars=_examples(exemplars),
            validation=_examples(validation),
            test=_examples(test),
            baseline=f"{VERB} {PHRASES[task][WEAK_GRADE][0]}.",
        ),
        target=DEMO,
        budget=Budget(calls=CALLS),
        seed=seed,
        labels={"demo": task},
    )


def _examples(pairs: list[Pair]) -> tuple[Example, ...]:
    return tuple(Example(input=text, output=(answer,)) for text, answer in pairs)


async def run_demo(task: str, seed: int, report: Path | None, screen: Screen) -> int:
    """Run the demo and return its exit code.

    Raises:
        InvalidRequest: the demo model knows no such task.
    """
    spec = demo_spec(task, seed)
    database = FOLDER / f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}.db"
    await asyncio.to_thread(FOLDER.mkdir, parents=True, exist_ok=True)
    _introduce(spec, screen)
    code = await run_local(RunRequest(Options(str(database)), spec=spec, report=report), screen)
    if code == 0:
        _suggest(screen)
    return code


def _introduce(spec: JobSpec, screen: Screen) -> None:
    pairs = ", ".join(f"{e.input} -> {e.output[0]}" for e in spec.task.exemplars[:3])
    screen.say("InstructZero looks for the instruction that makes a language model do a task.")
    screen.say(f"  The task, by example:  {pairs}")
    screen.say(f"  Your instruction now:  {spec.task.baseline}")
    screen.say("  1. Points of a box become soft prompts; an open model turns each into text.")
    screen.say("  2. Each text is tried on a black-box model over the OpenAI protocol.")
    screen.say("  3. A Gaussian process learns from the scores where to look next.")
    screen.say("  4. The winner and your instruction are measured on examples nobody has seen.")
    screen.say(
        "Both models are played by one tiny bundled model: it shows how the search works, and "
        "proves nothing about real models."
    )
    screen.say()


def _suggest(screen: Screen) -> None:
    screen.say()
    screen.say("Open the report in a browser: it holds the picture of the search. Then try")
    screen.say("  instructzero demo --task sentiment       another task")
    screen.say("  instructzero run examples/own_job.yaml   a job file to copy")
    screen.say("  instructzero serve                       the same through POST /jobs")
