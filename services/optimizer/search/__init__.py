"""The search: numbers in, numbers out. No IO, no async, no clock, no global generator."""

from services.optimizer.search.registry import (
    STRATEGIES,
    BadOption,
    StrategyInfo,
    UnknownStrategy,
    make_strategy,
)

__all__ = ["STRATEGIES", "BadOption", "StrategyInfo", "UnknownStrategy", "make_strategy"]
