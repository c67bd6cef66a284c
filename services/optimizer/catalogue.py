"""What a job may name, as the API shows it: strategies with their options, and metrics."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Literal

from instructzero.contracts import MetricName, MetricView, OptionView, StrategyName, StrategyView
from services.optimizer.search.registry import STRATEGIES, StrategyInfo, options_of

OptionType = Literal["boolean", "integer", "number", "string"]

METRICS: Mapping[MetricName, MetricView] = {
    name: MetricView(name=name, description=description, parameters=parameters)
    for name, description, parameters in (
        (
            MetricName.EXACT_MATCH,
            "1 if the answer is one of the accepted outputs, apart from case, spacing, and quotes "
            "or punctuation around it.",
            (),
        ),
        (
            MetricName.F1,
            "The harmonic mean of precision and recall over words, for the best accepted output.",
            (),
        ),
        (
            MetricName.EXACT_SET,
            "1 if the answer has the same words as an accepted output, in any order.",
            (),
        ),
        (MetricName.CONTAINS, "1 if an accepted output stands in the answer as whole words.", ()),
        (
            MetricName.NUMERIC,
            "1 if the answer's last number is within `tolerance` of an accepted output.",
            ("tolerance",),
        ),
        (
            MetricName.REGEX,
            "1 if a pattern given as accepted output is found in the answer, within 0.1 seconds.",
            (),
        ),
        (MetricName.JSON_EQUAL, "1 if the answer is JSON that equals an accepted output.", ()),
        (
            MetricName.ROUGE_L,
            "The longest common subsequence of words (ROUGE-L), for the best accepted output.",
            (),
        ),
        (
            MetricName.JUDGE,
            "What another registered target says of the answer by your rubric; one more call an "
            "answer.",
            ("target", "rubric"),
        ),
        (MetricName.WEBHOOK, "What a registered scoring webhook says.", ("webhook",)),
    )
}
"""The metrics that the scorer computes; a spec that names another one is refused."""


def strategy_views() -> tuple[StrategyView, ...]:
    """Return every strategy with its options."""
    return tuple(_strategy_view(info) for info in STRATEGIES.values())


def _strategy_view(info: StrategyInfo) -> StrategyView:
    described = _attributes(inspect.getdoc(options_of(info.name)) or "")
    return StrategyView(
        name=StrategyName(info.name),
        description=info.description,
        options=tuple(
            OptionView(
                name=name,
                type=_type_of(default),
                default=default if isinstance(default, bool | int | float | str) else None,
                description=described.get(name, ""),
            )
            for name, default in info.options.items()
        ),
    )


def _type_of(default: object) -> OptionType:
    """Return an option's JSON type; one without a default counts something."""
    if isinstance(default, bool):
        return "boolean"
    if isinstance(default, float):
        return "number"
    return "string" if isinstance(default, str) else "integer"


def _attributes(doc: str) -> dict[str, str]:
    """Return the descriptions under `Attributes:` of a docstring."""
    _, _, listed = doc.partition("Attributes:")
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", listed, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
