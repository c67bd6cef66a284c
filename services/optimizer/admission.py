"""The checks a valid spec must pass before it is stored: does this server have what it names?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from instructzero.contracts import JobSpec, MetricName, ScoreExample, ScoreRequest, TargetView
from instructzero.errors import (
    FieldProblem,
    InvalidRequest,
    InvalidSpec,
    Overloaded,
    UnknownTarget,
)
from services.optimizer.buyer import Scorer
from services.optimizer.catalogue import METRICS
from services.optimizer.intake import ApiDeps, ListsModels
from services.optimizer.jobs import Connections, Cost, fits, worst_call
from services.optimizer.search.registry import BadOption, check_options

MOST_PROBLEMS = 20


@runtime_checkable
class ChecksRequests(Protocol):
    """A scorer in this process, which knows more than its targets."""

    def check(self, request: ScoreRequest) -> None:
        """Refuse what cannot be scored."""
        ...


async def admit(spec: JobSpec, deps: ApiDeps) -> Connections:
    """Return what the job calls if this server can run the job.

    Raises:
        UnknownTarget: the target is not registered.
        InvalidSpec: something else does not fit; names the fields.
        ScorerUnavailable: nobody can say which targets there are.
    """
    targets = {target.name: target for target in await deps.scorer.targets()}
    if spec.target not in targets:
        detail = f"no such target is registered; registered are: {_listed(targets)}"
        raise UnknownTarget(f"/target: {detail}", errors=[FieldProblem("/target", detail)])
    problems = [*_metric_problems(spec, targets, deps.scorer), *_option_problems(spec)]
    models = await served_models(deps)
    if models is not None and spec.generator.name not in models:
        detail = f"no such generator is served; served are: {', '.join(models) or 'none'}"
        problems.append(FieldProblem("/generator/name", detail))
    problems += await asyncio.to_thread(_example_problems, spec, deps)
    if not problems:
        connections = Connections.of(spec, targets)
        problems += _budget_problems(spec, connections)
    if problems:
        first = f"{problems[0].pointer}: {problems[0].detail}"
        raise InvalidSpec(first, errors=problems)
    return connections


async def served_models(deps: ApiDeps) -> tuple[str, ...] | None:
    """Return the generator models a job may name, None if that is not known here."""
    if not isinstance(deps.generator, ListsModels):
        return None
    return await deps.generator.models()


def _listed(targets: Mapping[str, TargetView]) -> str:
    return ", ".join(sorted(targets)) or "none"


def _metric_problems(
    spec: JobSpec, targets: Mapping[str, TargetView], scorer: Scorer
) -> Iterator[FieldProblem]:
    if spec.metric.name not in METRICS:
        known = ", ".join(METRICS)
        yield FieldProblem("/metric", f"this server does not compute it; it computes: {known}")
    elif spec.metric.name is MetricName.JUDGE and spec.metric.target not in targets:
        detail = f"the judge's target is not registered; registered are: {_listed(targets)}"
        yield FieldProblem("/metric/target", detail)
    elif spec.metric.name is MetricName.WEBHOOK and isinstance(scorer, ChecksRequests):
        try:
            scorer.check(_first_request(spec))
        except UnknownTarget as error:
            yield from error.errors
        except (InvalidRequest, Overloaded):  # the examples are checked below
            return


def _first_request(spec: JobSpec) -> ScoreRequest:
    example = spec.task.validation[0]
    return ScoreRequest(
        job_id="check",
        target=spec.target,
        instruction="",
        examples=(ScoreExample(id="0", input=example.input, outputs=example.output),),
        metric=spec.metric,
    )


def _option_problems(spec: JobSpec) -> Iterator[FieldProblem]:
    """Check each option alone, so that the problem names it, and then all together."""
    name, options = spec.strategy.name, spec.strategy.options
    has_failed = False
    for key, value in options.items():
        try:
            check_options(name, {key: value})
        except BadOption as error:
            has_failed = True
            yield FieldProblem(f"/strategy/options/{key}", str(error))
    if not has_failed:
        try:
            check_options(name, options)
        except BadOption as error:
            yield FieldProblem("/strategy/options", str(error))


def _example_problems(spec: JobSpec, deps: ApiDeps) -> list[FieldProblem]:
    """Check the accepted outputs against the metric."""
    problems: list[FieldProblem] = []
    for split in ("validation", "test"):
        for index, example in enumerate(getattr(spec.task, split)):
            found = deps.check_metric(spec.metric, example.output)
            if found is not None:
                problems.append(FieldProblem(f"/task/{split}/{index}/output", found))
            if len(problems) == MOST_PROBLEMS:
                return problems
    return problems


def _budget_problems(spec: JobSpec, connections: Connections) -> Iterator[FieldProblem]:
    """Refuse a budget of tokens or money in which not even the cheapest call fits."""
    cheapest = min(
        (worst_call(spec, connections, "", example) for example in spec.task.validation),
        key=lambda cost: (cost.tokens, cost.usd),
    )
    if not fits(spec, Cost(), Cost(tokens=cheapest.tokens)):
        detail = (
            f"holds not a single call: one may use up to {cheapest.tokens} tokens "
            f"(the answer's limit is {connections.target.max_tokens})"
        )
        yield FieldProblem("/budget/tokens", detail)
    others = (getattr(spec.budget, name) for name in ("calls", "trials", "tokens", "seconds"))
    if not connections.has_price and all(bound is None for bound in others):
        detail = "bounds nothing, since the target has no price: set calls or another bound"
        yield FieldProblem("/budget/usd", detail)
    if not fits(spec, Cost(), Cost(usd=cheapest.usd)):
        detail = f"holds not a single call: one may cost up to {cheapest.usd:.2g} US dollars"
        yield FieldProblem("/budget/usd", detail)
