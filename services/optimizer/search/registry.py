"""The strategies on offer, by name, and how one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, cast

from services.optimizer.search.ape import ApeOptions, ApeStrategy
from services.optimizer.search.default import DefaultOptions, DefaultStrategy
from services.optimizer.search.instructzero_options import InstructZeroOptions
from services.optimizer.search.random_search import RandomOptions, RandomStrategy
from services.optimizer.search.strategy import Problem, Strategy

_Options = TypeVar("_Options")


@dataclass(frozen=True)
class StrategyInfo:
    """What one may know of a strategy before choosing it.

    Attributes:
        name: what a job spec says.
        description: one sentence.
        options: default value of each option it takes.
    """

    name: str
    description: str
    options: Mapping[str, object] = field(default_factory=dict)


class UnknownStrategy(ValueError):
    """No strategy has this name."""


class BadOption(ValueError):
    """The strategy has no such option, or the value has the wrong type or range."""


def make_strategy(
    name: str, problem: Problem, options: Mapping[str, object] | None = None
) -> Strategy:
    """Make a strategy for one job.

    Args:
        name: a key of `STRATEGIES`.
        problem: what the strategy may know of the job.
        options: values for the strategy's options; what is left out keeps its default.

    Raises:
        UnknownStrategy: no strategy has this name.
        BadOption: an option does not exist or its value does not fit.
    """
    if name not in _MAKERS:
        raise UnknownStrategy(f"unknown strategy {name!r}: choose from {', '.join(STRATEGIES)}")
    kind, make = _MAKERS[name]
    return make(problem, read_options(kind, options or {}))


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Check option values without making the strategy.

    Raises:
        UnknownStrategy: no strategy has this name.
        BadOption: an option does not exist or its value does not fit.
    """
    read_options(options_of(name), options)


def options_of(name: str) -> type[object]:
    """Return the dataclass of a strategy's options.

    Raises:
        UnknownStrategy: no strategy has this name.
    """
    if name not in _MAKERS:
        raise UnknownStrategy(f"unknown strategy {name!r}: choose from {', '.join(STRATEGIES)}")
    return _MAKERS[name][0]


def read_options(kind: type[_Options], given: Mapping[str, object]) -> _Options:
    """Check option values against an options dataclass and build it.

    Raises:
        BadOption: an option does not exist or its value does not fit.
    """
    known = _defaults(kind)
    for name, value in given.items():
        if name not in known:
            raise BadOption(f"unknown option {name!r}: choose from {', '.join(known) or 'none'}")
        if not _fits(value, known[name]):
            raise BadOption(f"option {name!r} takes a value like {known[name]!r}")
    try:
        return kind(**given)
    except ValueError as error:
        raise BadOption(str(error)) from error


def _fits(value: object, default: object) -> bool:
    if default is None or value is None:
        return default is None and (value is None or type(value) is int)
    if type(default) is float:
        return type(value) in (int, float)
    return type(value) is type(default)


def _defaults(kind: type[object]) -> dict[str, object]:
    declared = fields(cast(Any, kind))  # a dataclass type, which object does not say
    return {entry.name: entry.default for entry in declared if entry.default is not MISSING}


def _make_instructzero(problem: Problem, options: InstructZeroOptions) -> Strategy:
    # BoTorch takes seconds to import; only jobs that use it pay for that.
    from services.optimizer.search.instructzero import InstructZeroStrategy

    return InstructZeroStrategy(problem, options)


_MAKERS: Mapping[str, tuple[type[Any], Callable[[Problem, Any], Strategy]]] = {
    "default": (DefaultOptions, DefaultStrategy),
    "instructzero": (InstructZeroOptions, _make_instructzero),
    "random": (RandomOptions, RandomStrategy),
    "ape": (ApeOptions, ApeStrategy),
}

STRATEGIES: Mapping[str, StrategyInfo] = {
    name: StrategyInfo(name, description, _defaults(_MAKERS[name][0]))
    for name, description in {
        "default": "Many instructions first, then a race guided by a Gaussian process that buys "
        "each call where it is worth most.",
        "instructzero": "The paper's method, corrected: expected improvement under the "
        "instruction-coupled kernel, the whole validation set for every instruction.",
        "random": "Random soft prompts, the whole validation set for every instruction.",
        "ape": "A pool of random instructions, then rounds of upper confidence bounds on a few "
        "examples each, as in APE.",
    }.items()
}
