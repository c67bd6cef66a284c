from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructzero.contracts import MetricSpec
from instructzero.errors import InvalidRequest
from services.scorer.metrics import check_outputs, normalise, score_answer

TEXT_METRICS = ["exact_match", "f1", "rouge_l", "exact_set", "contains"]


def score(name: str, answer: str, *outputs: str, **parameters: float) -> float:
    return score_answer(MetricSpec(name=name, **parameters), answer, outputs)


@pytest.mark.parametrize(
    ("answer", "output", "expected"),
    [
        ("Insane.", "insane", 1),
        ('"insane"', "Insane", 1),
        ("  big\n dog ", "big dog", 1),
        ("3.5", "3", 0),  # the reference cut at the full stop
        ("U.S.", "u", 0),
        ("U.S.", "u.s.", 1),
        ("salt and pepper", "salt pepper", 0),  # the reference dropped " and "
        ("-5", "5", 0),
        ("", "...", 0),
        ("...", "...", 1),
        ("", "a", 0),
        ("ＡＢＣ", "abc", 1),
    ],
)
def test_exact_match(answer: str, output: str, expected: float) -> None:
    assert score("exact_match", answer, output) == expected


def test_any_accepted_output_is_right() -> None:
    assert score("exact_match", "car", "automobile", "car") == 1


def test_f1_by_hand() -> None:
    # said {the, big, dog}, expected {a, big, dog}: 2 in common, 2 * 2 / (3 + 3)
    assert score("f1", "the big dog", "a big dog") == pytest.approx(2 / 3)
    assert score("f1", "dog dog", "dog") == pytest.approx(2 / 3)
    assert score("f1", "", "dog") == 0


def test_rouge_l_by_hand() -> None:
    # police killed the gunman / police kill the gunman: LCS 3 of 4 and 4
    assert score("rouge_l", "police killed the gunman", "Police kill the gunman.") == 0.75
    # the gunman kill police: LCS "the gunman", order counts
    assert score("rouge_l", "the gunman kill police", "police kill the gunman") == 0.5
    # LCS 2, answer of 2 words, output of 5: P = 1, R = 2/5, F = 4/7
    assert score("rouge_l", "a b", "a x b y z") == pytest.approx(4 / 7)
    assert score("rouge_l", "", "a") == score("rouge_l", "b", "a") == 0


def test_rouge_l_of_long_texts_is_quick() -> None:
    begun = time.monotonic()
    words = " ".join(str(number % 997) for number in range(20_000))
    assert score("rouge_l", words, words) == 1
    assert time.monotonic() - begun < 2


def test_sets_have_no_order() -> None:
    assert score("exact_set", "Cat, dog and snail.", "snail, cat, dog") == 1
    assert score("exact_set", "cat dog", "cat, dog, snail") == 0
    assert score("exact_set", "and", "and") == 0


@pytest.mark.parametrize(
    ("answer", "output", "expected"),
    [
        ("The answer is C++.", "c++", 1),  # the reference searched for it as a pattern
        ("anything", ".*", 0),
        ("category", "cat", 0),
        ("It costs 3.5 euros", "5", 0),
        ("it is -5 degrees", "5", 0),
        ("it is 5 degrees", "5", 1),
        ("anything", '""', 0),
    ],
)
def test_contains(answer: str, output: str, expected: float) -> None:
    assert score("contains", answer, output) == expected


@pytest.mark.parametrize(
    ("answer", "output", "expected"),
    [
        ("7", "7.0", 1),
        ("The sum of 3 and 4 is 7.", "7", 1),
        ("1,234", "1234", 1),
        ("−2", "-2", 1),
        ("2 apples", "-2", 0),
        ("1.5e3", "1500", 1),
        ("nan", "1", 0),
        ("none", "1", 0),
        ("12345678901234567890", "12345678901234567891", 0),
    ],
)
def test_numeric(answer: str, output: str, expected: float) -> None:
    assert score("numeric", answer, output) == expected


def test_numeric_tolerance_is_absolute() -> None:
    assert score("numeric", "3.14", "3.14159", tolerance=0.01) == 1
    assert score("numeric", "3.14", "3.14159", tolerance=0.001) == 0


def test_regex_outputs_are_patterns() -> None:
    assert score("regex", "abc-123", r"^[a-z]+-\d+$") == 1
    assert score("regex", "abc", r"^\d+$") == 0


def test_a_pattern_that_never_ends_is_cut() -> None:
    begun = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        score("regex", "x" * 60, r"^(x+x+)+y$|^(x|xx)+z$")
    assert caught.value.reason == "metric_timeout"
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("answer", "output", "expected"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b":[1.0,2],"a":1}', 1),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1),
        ("true", "1", 0),
        ('{"a": 1', '{"a": 1}', 0),
        ("NaN", "null", 0),
        ("[" * 100_000, "[]", 0),
    ],
)
def test_json_equal(answer: str, output: str, expected: float) -> None:
    assert score("json_equal", answer, output) == expected


@pytest.mark.parametrize(
    ("name", "output"),
    [("numeric", "many"), ("regex", "("), ("json_equal", "{"), ("exact_match", "  ")],
)
def test_outputs_that_cannot_be_met_are_named(name: str, output: str) -> None:
    assert check_outputs(MetricSpec(name=name), [output])


@given(st.sampled_from(TEXT_METRICS), st.text(max_size=60), st.text(min_size=1, max_size=60))
def test_text_scores_are_between_0_and_1_and_nothing_matches_emptiness(
    name: str, answer: str, output: str
) -> None:
    value = score(name, answer, output)
    assert 0 <= value <= 1
    assert score(name, "", output) == 0


@given(st.text(max_size=80))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once).casefold() == normalise(once)
