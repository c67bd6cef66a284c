"""What a runner learns of costs while it works: how they vary, and how fast answers come. Pure.

It is published with every step, in a column of the job's row, so that a forecast reads no
evaluation. How much answers vary is measured between instructions: their answers resemble one
another in length, so that a hundred answers to five instructions tell less than a hundred to fifty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from services.optimizer.jobs import Cost


@dataclass(frozen=True)
class Learned:
    """What was learned by the last step.

    Attributes:
        arms: instructions with bought answers.
        tokens_variance: variance that one more bought answer adds to the sum of many, in tokens.
        usd_variance: the same of the money.
        steps: steps whose time was taken.
        evaluations: answers that came in them.
        seconds: the time they took; while nobody ran the job, no time passed.
        squares: sums over the steps of evaluations squared, evaluations x seconds, seconds squared.
        final_from: evaluations there were when the final check was decided; None: it was not.
        final_evaluations: what the final check buys.
    """

    arms: int = 0
    tokens_variance: float = 0.0
    usd_variance: float = 0.0
    steps: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    final_from: int | None = None
    final_evaluations: int = 0

    @classmethod
    def of(cls, content: Mapping[str, Any] | None) -> Self:
        """Read what was published; what another version added is left out."""
        names = {entry.name for entry in fields(cls)}
        found = cls(**{name: value for name, value in (content or {}).items() if name in names})
        nn, nt, tt = found.squares
        return replace(found, squares=(nn, nt, tt))

    def content(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def after_step(self, evaluations: int, seconds: float, bills: Bills) -> Self:
        """Return what is known after one more step."""
        nn, nt, tt = self.squares
        tokens, usd = bills.variances()
        return replace(
            self,
            arms=len(bills.arms),
            tokens_variance=tokens,
            usd_variance=usd,
            steps=self.steps + 1,
            evaluations=self.evaluations + evaluations,
            seconds=self.seconds + seconds,
            squares=(
                nn + evaluations**2,
                nt + evaluations * seconds,
                tt + seconds**2,
            ),
        )

    def seconds_variance(self) -> float:
        """Return the variance that one more answer adds to the time of many."""
        if self.steps < 2 or not self.evaluations:
            return 0.0
        nn, nt, tt = self.squares
        mean = self.seconds / self.evaluations
        between = tt - 2 * mean * nt + mean**2 * nn
        return max(between, 0.0) / self.evaluations * self.steps / (self.steps - 1)


@dataclass
class Bill:
    """What the answers to one instruction have cost; `n` of them were bought."""

    n: int = 0
    tokens: int = 0
    usd: float = 0.0


@dataclass
class Bills:
    """What bought answers have cost, by instruction."""

    arms: dict[int, Bill] = field(default_factory=dict)
    _squares: tuple[float, float] = (0.0, 0.0)

    def add(self, arm: int, cost: Cost) -> None:
        """Take in one answer; one from the cache says nothing of what answers cost."""
        if not cost.tokens:
            return
        bill = self.arms.setdefault(arm, Bill())
        bill.n += 1
        bill.tokens += cost.tokens
        bill.usd += cost.usd
        tokens, usd = self._squares
        self._squares = tokens + cost.tokens**2, usd + cost.usd**2

    def variances(self) -> tuple[float, float]:
        """Return what one more answer adds to the variance of many: of the tokens, of the money."""
        bills = list(self.arms.values())
        tokens = [(bill.n, float(bill.tokens)) for bill in bills]
        usd = [(bill.n, bill.usd) for bill in bills]
        return _variance(tokens, self._squares[0]), _variance(usd, self._squares[1])


def _variance(groups: list[tuple[int, float]], squares: float) -> float:
    """Return the larger of the variances between groups (n, sum) and between single answers."""
    n = sum(size for size, _ in groups)
    if n < 2:
        return 0.0
    mean = sum(total for _, total in groups) / n
    single = max(squares - n * mean**2, 0.0) / (n - 1)
    if len(groups) < 2:
        return single
    between = sum((total - size * mean) ** 2 for size, total in groups) / n
    return max(single, between * len(groups) / (len(groups) - 1))
