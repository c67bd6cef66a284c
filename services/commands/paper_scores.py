"""The paper's scores per task, and the metric of each task of the benchmark.

The scores are read from the bars of Figure 4 of arXiv:2306.03082, so they are right to about .01.
They were measured on gpt-3.5-turbo with about 3,000 calls a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from instructzero.contracts import MetricName

PAPER_CALLS = 3000


class PaperScore(NamedTuple):
    """Test scores of the paper's method and of APE."""

    instructzero: float
    ape: float


SCORES: Mapping[str, PaperScore] = {
    "active_to_passive": PaperScore(1.00, 1.00),
    "antonyms": PaperScore(0.85, 0.72),
    "ascii": PaperScore(0.33, 0.16),
    "auto_categorization": PaperScore(0.28, 0.15),
    "auto_debugging": PaperScore(0.50, 0.33),
    "cause_and_effect": PaperScore(0.91, 0.44),
    "common_concept": PaperScore(0.15, 0.04),
    "cs_algorithms": PaperScore(0.33, 0.11),
    "diff": PaperScore(1.00, 1.00),
    "first_word_letter": PaperScore(1.00, 1.00),
    "informal_to_formal": PaperScore(0.63, 0.41),
    "larger_animal": PaperScore(0.92, 0.81),
    "letters_list": PaperScore(1.00, 1.00),
    "negation": PaperScore(0.80, 0.78),
    "num_to_verbal": PaperScore(1.00, 1.00),
    "object_counting": PaperScore(0.56, 0.38),
    "odd_one_out": PaperScore(0.92, 0.85),
    "orthography_starts_with": PaperScore(0.51, 0.08),
    "periodic_elements": PaperScore(1.00, 0.98),
    "rhymes": PaperScore(0.46, 0.01),
    "second_word_letter": PaperScore(0.62, 0.60),
    "sentence_similarity": PaperScore(0.19, 0.00),
    "sentiment": PaperScore(0.93, 0.90),
    "singular_to_plural": PaperScore(1.00, 0.43),
    "sum": PaperScore(1.00, 1.00),
    "synonyms": PaperScore(0.38, 0.18),
    "taxonomy_animal": PaperScore(0.92, 0.04),
    "translation_en-de": PaperScore(0.81, 0.78),
    "translation_en-es": PaperScore(0.86, 0.60),
    "translation_en-fr": PaperScore(0.89, 0.54),
    "word_sorting": PaperScore(0.78, 0.33),
    "word_unscrambling": PaperScore(0.67, 0.01),
}
ALIASES = {"ascii_word_recognition": "ascii", "object_count": "object_counting"}
"""Other names of the same tasks: files and the paper's code do not agree on them."""
METRICS: Mapping[str, MetricName] = {
    "common_concept": MetricName.F1,
    "informal_to_formal": MetricName.F1,
    "orthography_starts_with": MetricName.EXACT_SET,
    "taxonomy_animal": MetricName.EXACT_SET,
    "synonyms": MetricName.CONTAINS,
}
"""What the benchmark does not compare as a whole."""


def paper_score(task: str) -> PaperScore | None:
    """Return the paper's scores of a task file, None for a task that it does not have."""
    return SCORES.get(ALIASES.get(task, task))


def paper_metric(task: str) -> MetricName:
    """Return the metric by which the benchmark scores a task."""
    return METRICS.get(task, MetricName.EXACT_MATCH)
