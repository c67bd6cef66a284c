"""Do the registered targets answer? Free unless asked otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from instructzero.contracts import ScoreExample, ScoreLine, ScoreRequest
from instructzero.errors import InstructZeroError
from services.embedded import DEMO, Options, registered_targets

if TYPE_CHECKING:
    from services.scorer.scoring import ScorerPool

State = Literal["ok", "missing", "optional"]
SECONDS = 10.0
FIXES = {
    "unauthorized": "check the key that api_key refers to",
    "invalid_api_key": "check the key that api_key refers to",
    "model_not_found": "edit `model` in the targets file",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str
    fix: str = ""


async def check_targets(options: Options, *, may_pay: bool) -> AsyncIterator[Check]:
    """Ask each target for its models, which is free; for an answer only if that may cost."""
    if options.targets is None:
        yield Check("targets", "ok", "no file: jobs may use `demo`", "--targets FILE for others")
        return
    from services.scorer.scoring import ScorerPool
    from services.scorer.settings import Settings

    try:
        targets = registered_targets(options)
    except InstructZeroError as error:
        yield Check("targets", "missing", error.detail, f"edit {options.targets}")
        return
    pool = ScorerPool(targets, settings=Settings(patience_seconds=SECONDS))
    try:
        for target in targets:
            check = await _probe(pool, target.name)
            if check.state == "ok" and may_pay:
                check = await _ask(pool, target.name)
            yield check
    finally:
        await pool.aclose()


async def _probe(pool: ScorerPool, name: str) -> Check:
    failure = await pool.probe(name)
    if failure is None:
        return Check(f"target {name}", "ok", "answers")
    return _missing(name, failure.code, failure.message)


async def _ask(pool: ScorerPool, name: str) -> Check:
    """Score one example, as a job would."""
    request = ScoreRequest(
        job_id="doctor",
        target=name,
        instruction="Answer with the word ok.",
        examples=(ScoreExample(id="1", input="ok", outputs=("ok",)),),
        calls=1,
        cache=False,
    )
    try:
        answers = [line async for line in pool.score(request) if isinstance(line, ScoreLine)]
    except InstructZeroError as error:
        return _missing(name, error.reason, error.detail)
    line = answers[0]  # one example, one line
    if line.error is not None:
        return _missing(name, line.error.code, line.error.message)
    tokens = line.usage.prompt_tokens + line.usage.completion_tokens
    return Check(f"target {name}", "ok", f"answered a question ({tokens} tokens)")


def _missing(name: str, code: str, message: str) -> Check:
    fix = FIXES.get(code, "check base_url and that the server runs")
    if name == DEMO:
        fix = "instructzero demo-target"
    return Check(f"target {name}", "missing", f"{message} ({code})", fix)
