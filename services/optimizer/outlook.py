"""A job's cost in numbers: what it was expected to be, and what has been spent. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self


class Guess(NamedTuple):
    """An amount for one evaluation: the least, the expected and the most that is typical."""

    low: float
    expected: float
    high: float


NOTHING = Guess(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Outlook:
    """What was known of a job's cost before its start; stored with the job.

    Attributes:
        calls_each: calls that one evaluation takes.
        most_evaluations: what the search buys at most, whatever the budget; None: no such bound.
        final_evaluations: what is set aside for the final check.
        leftover_evaluations: what the search may leave unbought since it does not fit any more.
        may_stop_early: a stop score is set.
        tokens: of one evaluation.
        usd: of one evaluation; None without a price.
        seconds: time from one evaluation to the next.
    """

    calls_each: int
    most_evaluations: int | None
    final_evaluations: int
    leftover_evaluations: int
    may_stop_early: bool
    tokens: Guess
    usd: Guess | None
    seconds: Guess

    @classmethod
    def of(cls, content: Mapping[str, Any] | None) -> Self | None:
        """Read what was stored; None: the job is of a version that stored nothing, or less."""
        names = {entry.name for entry in fields(cls)}
        if content is None or not names <= set(content):
            return None
        found = {name: content[name] for name in names}
        for name in ("tokens", "usd", "seconds"):
            found[name] = None if found[name] is None else Guess(*found[name])
        return cls(**found)

    def content(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Spent:
    """What a job has cost so far; what is in doubt stands apart, since no answer tells of it."""

    evaluations: int = 0
    cached: int = 0
    trials: int = 0
    calls: int = 0
    failed_calls: int = 0
    in_doubt_calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    in_doubt_tokens: int = 0
    in_doubt_usd: float = 0.0
    seconds: float = 0.0

    @property
    def bought(self) -> int:
        """Evaluations that were paid for."""
        return max(self.evaluations - self.cached, 0)

    def totals(self) -> Rates:
        """Return what counts against the budget."""
        return Rates(
            self.calls,
            self.tokens + self.in_doubt_tokens,
            self.usd + self.in_doubt_usd,
            self.seconds,
        )


class Rates(NamedTuple):
    """Calls, tokens, money and time: of one evaluation, or of the whole job."""

    calls: float
    tokens: float
    usd: float
    seconds: float
