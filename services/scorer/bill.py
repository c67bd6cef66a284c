"""What one example has cost: calls, tokens, money."""

from __future__ import annotations

from dataclasses import dataclass

from instructzero.contracts import JudgeSpend, TokenUsage


@dataclass(slots=True)
class Bill:
    """What one example has cost so far; `usd` is None when nothing it needs has a price."""

    calls: int = 0
    failed_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    seconds: float = 0.0

    def usage(self) -> TokenUsage:
        """Return the tokens."""
        return TokenUsage(
            prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens
        )

    def spend(self) -> JudgeSpend:
        """Return what a judge has cost."""
        return JudgeSpend(
            calls=self.calls, failed_calls=self.failed_calls, usage=self.usage(), usd=self.usd
        )

    def plus(self, other: Bill) -> Bill:
        """Return both bills as one; what has no price adds nothing to the money."""
        prices = [usd for usd in (self.usd, other.usd) if usd is not None]
        return Bill(
            calls=self.calls + other.calls,
            failed_calls=self.failed_calls + other.failed_calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            usd=sum(prices) if prices else None,
            seconds=self.seconds + other.seconds,
        )
