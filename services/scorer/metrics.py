"""Metrics h: (answer, accepted outputs) -> [0, 1]. Pure; the best of the accepted outputs counts.

What the reference implementation got wrong and this does not: answers are not cut at the first
newline or full stop ("3.5", "U.S."), " and " stays, expected text is escaped before it is searched
for, nothing that is empty matches anything, and every result is a number.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import regex

from instructzero.contracts import MetricName, MetricSpec
from instructzero.errors import InvalidRequest

REGEX_SECONDS = 0.1
MAX_PATTERN = 2_000
OPENING = "\"'`“”‘’«»([{<*_¿¡ "
CLOSING = "\"'`“”‘’«»)]}>*_.,;:!?… "
NUMBER = regex.compile(
    r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,3})?(?![\w])"
)
FENCE = regex.compile(r"\A\s*```[\w-]*\s*\n(.*?)\n?\s*```\s*\Z", regex.DOTALL)


def score_answer(metric: MetricSpec, answer: str, outputs: Sequence[str]) -> float:
    """Return the score of one answer.

    `judge` and `webhook` need a call and are scored elsewhere.

    Raises:
        InvalidRequest: an accepted output is not valid for the metric, or a pattern took too long.
    """
    compare = _comparison(metric)
    return max(compare(answer, output) for output in outputs)


def check_outputs(metric: MetricSpec, outputs: Sequence[str]) -> str | None:
    """Return what is wrong with the accepted outputs of an example, or None."""
    for output in outputs:
        problem = _output_problem(metric.name, output)
        if problem is not None:
            return problem
    return None


def normalise(text: str) -> str:
    """Return the text as answers are compared: one case, one kind of space, no outer quotes.

    Text that consists of punctuation alone stays as it is.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.lstrip(OPENING).rstrip(CLOSING) or plain


def _comparison(metric: MetricSpec) -> Callable[[str, str], float]:
    if metric.name is MetricName.NUMERIC:
        return lambda answer, output: _numeric(answer, output, metric.tolerance)
    if metric.name not in COMPARISONS:
        raise InvalidRequest(f"{metric.name} is not computed from the text alone")
    return COMPARISONS[metric.name]


def _exact_match(answer: str, output: str) -> float:
    said = normalise(answer)
    return float(said != "" and said == normalise(output))


def _tokens(text: str) -> list[str]:
    return [token for word in text.replace(",", " ").split() if (token := normalise(word))]


def _f1(answer: str, output: str) -> float:
    said, expected = Counter(_tokens(answer)), Counter(_tokens(output))
    n_common = (said & expected).total()
    if n_common == 0:
        return 0.0
    return 2 * n_common / (said.total() + expected.total())


def _rouge_l(answer: str, output: str) -> float:
    """F-measure of the longest common subsequence of words: order counts, gaps do not."""
    from rapidfuzz.distance import LCSseq  # no other metric needs its 3 MB

    said, expected = _tokens(answer), _tokens(output)
    n_common = LCSseq.similarity(said, expected)
    return 2 * n_common / (len(said) + len(expected)) if n_common else 0.0


def _exact_set(answer: str, output: str) -> float:
    said = {token for token in _tokens(answer) if token != "and"}  # noqa: S105 - a word
    expected = {token for token in _tokens(output) if token != "and"}  # noqa: S105
    return float(bool(said) and said == expected)


def _contains(answer: str, output: str) -> float:
    expected = normalise(output)
    if not expected:
        return 0.0
    before, after = r"(?<!\w)", r"(?!\w)"
    if expected[0].isdigit():  # "5" is neither in "3.5" nor in "-5"
        before += r"(?<!\d[.,])(?<!(?:^|[\s(])-)"
    if expected[-1].isdigit():
        after += r"(?![.,]\d)"
    pattern = before + regex.escape(expected) + after
    return float(_search(pattern, normalise(answer)))


def _numeric(answer: str, output: str, tolerance: float) -> float:
    said, expected = _last_number(answer), _number(output)
    if expected is None:
        raise InvalidRequest("an accepted output is not a number")
    if said is None:
        return 0.0
    return float(abs(said - expected) <= tolerance)


def _number(text: str) -> float | int | None:
    plain = text.strip().replace(",", "").replace("−", "-")
    if len(plain) > 100:
        return None
    try:
        return int(plain)
    except ValueError:
        pass
    try:
        value = float(plain)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _last_number(text: str) -> float | int | None:
    whole = _number(text.strip().rstrip("."))
    if whole is not None:
        return whole
    found = NUMBER.findall(text, timeout=REGEX_SECONDS)
    return _number(found[-1]) if found else None


def _regex(answer: str, output: str) -> float:
    return float(_search(output, answer.strip()))


def _search(pattern: str, text: str) -> bool:
    try:
        return regex.search(pattern, text, timeout=REGEX_SECONDS) is not None
    except TimeoutError as error:
        raise InvalidRequest(
            f"a pattern took more than {REGEX_SECONDS:g} s on an answer; write one without nested "
            "repetition",
            reason="metric_timeout",
        ) from error
    except regex.error as error:
        raise InvalidRequest(f"an accepted output is not a valid pattern ({error})") from error


def _json_equal(answer: str, output: str) -> float:
    fenced = FENCE.match(answer)
    try:
        said = _parse_json(fenced.group(1) if fenced else answer)
    except ValueError:
        return 0.0
    try:
        return float(_same_json(said, _parse_json(output)))
    except ValueError as error:
        raise InvalidRequest("an accepted output is not valid JSON") from error


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _same_json(left: Any, right: Any) -> bool:
    """Compare by JSON's types: 1 equals 1.0, and true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same_json(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same_json, left, right))
    return bool(left == right)


def _output_problem(metric: MetricName, output: str) -> str | None:
    if metric is MetricName.NUMERIC:
        return None if _number(output) is not None else "must be a number for the metric numeric"
    if metric is MetricName.REGEX:
        if len(output) > MAX_PATTERN:
            return f"a pattern may have at most {MAX_PATTERN} characters"
        try:
            regex.compile(output)
        except (regex.error, RecursionError, OverflowError) as error:
            return f"must be a valid regular expression for the metric regex ({error})"
        return None
    if metric is MetricName.JSON_EQUAL:
        try:
            _parse_json(output)
        except ValueError:
            return "must be valid JSON for the metric json_equal"
        return None
    if not output.strip():
        return "must hold more than blanks"
    return None


COMPARISONS: dict[MetricName, Callable[[str, str], float]] = {
    MetricName.EXACT_MATCH: _exact_match,
    MetricName.F1: _f1,
    MetricName.ROUGE_L: _rouge_l,
    MetricName.EXACT_SET: _exact_set,
    MetricName.CONTAINS: _contains,
    MetricName.REGEX: _regex,
    MetricName.JSON_EQUAL: _json_equal,
}
