"""Do the registered targets answer? Free unless asked otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import httpx

from instructzero.contracts import ScoreExample, ScoreLine, ScoreRequest
from instructzero.errors import InstructZeroError
from services.embedded import DEMO, Options, registered_targets
from services.scorer.targets import Target, Targets

State = Literal["ok", "missing", "optional"]
SECONDS = 10.0


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
    try:
        targets = registered_targets(options)
    except InstructZeroError as error:
        yield Check("targets", "missing", error.detail, f"edit {options.targets}")
        return
    for target in targets:
        check = await _ask_for_models(target)
        if check.state == "ok" and may_pay:
            check = await _ask_a_question(targets, target)
        yield check


async def _ask_for_models(target: Target) -> Check:
    name, config = f"target {target.name}", target.config
    headers = {}
    if target.key is not None:
        headers["authorization"] = f"Bearer {target.key.get_secret_value()}"
    try:
        async with httpx.AsyncClient(
            timeout=SECONDS, follow_redirects=False, proxy=config.proxy, trust_env=False
        ) as client:
            response = await client.get(f"{config.base_url}/models", headers=headers)
    except httpx.HTTPError as error:
        fix = "check base_url and that the server runs"
        if target.name == DEMO:
            fix = "instructzero demo-target"
        return Check(name, "missing", f"does not answer ({type(error).__name__})", fix)
    return _read_models(name, target, response)


def _read_models(name: str, target: Target, response: httpx.Response) -> Check:
    if response.status_code in {401, 403}:
        fix = "check the key that api_key refers to"
        return Check(name, "missing", f"refuses the key ({response.status_code})", fix)
    if response.status_code >= 500 or response.is_redirect:
        return Check(name, "missing", f"answers {response.status_code}", "check base_url")
    try:
        names = {str(model["id"]) for model in response.json()["data"]}
    except (ValueError, KeyError, TypeError):
        return Check(name, "ok", f"answers {response.status_code}, and lists no models")
    if target.config.model in names:
        return Check(name, "ok", f"answers, has {target.config.model}")
    some = ", ".join(sorted(names)[:5]) or "none"
    return Check(name, "missing", f"has no {target.config.model}; it has {some}", "edit `model`")


async def _ask_a_question(targets: Targets, target: Target) -> Check:
    """Score one example, as a job would."""
    from services.scorer.scoring import ScorerPool
    from services.scorer.settings import Settings

    name = f"target {target.name}"
    request = ScoreRequest(
        job_id="doctor",
        target=target.name,
        instruction="Answer with the word ok.",
        examples=(ScoreExample(id="1", input="ok", outputs=("ok",)),),
        calls=1,
        cache=False,
    )
    pool = ScorerPool(targets, settings=Settings(patience_seconds=SECONDS))
    try:
        lines = [line async for line in pool.score(request) if isinstance(line, ScoreLine)]
    except InstructZeroError as error:
        return Check(name, "missing", error.detail, "see the detail")
    finally:
        await pool.aclose()
    failure = lines[0].error if lines else None
    if failure is not None:
        return Check(name, "missing", f"{failure.message} ({failure.code})", "see the detail")
    tokens = lines[0].usage.prompt_tokens + lines[0].usage.completion_tokens if lines else 0
    return Check(name, "ok", f"answered a question ({tokens} tokens)")
