"""What a request wants scored, kept small: thousands wait at once, many for the same instruction.

The wire's models are checked and then let go; each of them takes several times as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

from instructzero.contracts import MetricSpec, ScoreRequest


class Case(NamedTuple):
    """One example: its id, its input and the outputs that are accepted."""

    id: str
    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Terms:
    """What all examples of a request share, and all requests that try the same instruction."""

    job_id: str
    tenant: str
    target: str
    template: str
    instruction: str
    metric: MetricSpec
    repeats: int
    cache: bool


class TermsInUse:
    """Gives requests that have the same terms the same object, for as long as one of them lives."""

    def __init__(self) -> None:
        self._terms: WeakValueDictionary[tuple[object, ...], Terms] = WeakValueDictionary()

    def of(self, request: ScoreRequest) -> Terms:
        """Return the terms of a request."""
        key = (
            request.job_id,
            request.tenant,
            request.target,
            request.template,
            request.instruction,
            request.metric,
            request.repeats,
            request.cache,
        )
        return self._terms.get(key) or self._terms.setdefault(key, Terms(*key))


def cases_of(request: ScoreRequest) -> list[Case]:
    """Return the examples of a request."""
    return [Case(example.id, example.input, example.outputs) for example in request.examples]
