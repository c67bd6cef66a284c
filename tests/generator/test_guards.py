from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from instructzero.contracts import ExemplarPair
from services.generator.guards import COMMON, reject

ANTONYMS = (("sane", "insane"), ("direct", "indirect"), ("hot", "cold"))
LETTERS = (("a", "b"), ("cat", "c"), ("2", "3"))
REVIEWS = (
    ("A waste of time and money.", "negative"),
    ("I loved every minute of it.", "positive"),
    ("Too long by half.", "negative"),
)


def verdict(text: str, pairs: tuple[tuple[str, str], ...] = ANTONYMS, cap: int = 300) -> str | None:
    exemplars = [ExemplarPair(input=one, output=other) for one, other in pairs]
    return reject(text, exemplars, max_characters=cap)


@pytest.mark.parametrize("text", ["", " ", "...", "?!", "“”"])
def test_a_text_without_words_is_empty(text):
    assert verdict(text) == "empty"


def test_the_length_cap_is_inclusive():
    text = "Write the opposite of the word."
    assert verdict(text, cap=len(text)) is None
    assert verdict(text, cap=len(text) - 1) == "too_long"


@pytest.mark.parametrize("text", ["Do {instruction} now", "Answer { Input }", "Give {output}"])
def test_a_placeholder_is_rejected(text):
    assert verdict(text) == "placeholder"


@pytest.mark.parametrize("text", ["Answer as {word}", "Return {} for nothing", "Use the input"])
def test_other_braces_are_fine(text):
    assert verdict(text) is None


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("Write the opposite: sane becomes insane", ANTONYMS),
        ("For INSANE say Sane", ANTONYMS),
        ("Turn hot -> cold", ANTONYMS),
        ("As in hot Output: cold", ANTONYMS),
        ("Answer like cat → c", LETTERS),
        ("Answer like a -> b", LETTERS),
        ("I loved every minute of it. => positive", REVIEWS),
        ("Say 2 + 3 is seventeen", (("2 + 3", "seventeen"),)),
    ],
)
def test_an_exemplars_answer_is_a_leak(text, pairs):
    assert verdict(text, pairs) == "leaked_exemplar"


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("Write the opposite of the word", ANTONYMS),
        ("Make a sane text", ANTONYMS),
        ("Remove what makes it insane", ANTONYMS),
        ("Give the letter after a", LETTERS),
        ("Give a letter: b or c, 2 or 3", LETTERS),
        ("Answer positive or negative", REVIEWS),
        ("Is it a waste of time and money. Say negative.", REVIEWS),
        ("Answer with a second word, not the first", (("first", "second"),)),
        ("Write the plural of sheep", (("sheep", "sheep"),)),
    ],
)
def test_labels_common_words_and_short_answers_are_no_leak(text, pairs):
    assert verdict(text, pairs) is None


def test_an_answer_equal_to_its_question_leaks_only_when_both_stand_there():
    pairs = (("sheep", "sheep"),)
    assert verdict("Write sheep as sheep", pairs) == "leaked_exemplar"


@pytest.mark.parametrize(
    "text",
    [
        "Write Write Write Write",
        "the word the word the word",
        "Sort the list by size. Sort the list by size. Sort the list by size.",
        "Aaaaaaaaaaaaaaaa",
        "abcabcabcabcabcabc",
        "写出反义词写出反义词写出反义词写出反义词写出反义词写出反义词",
        " ".join(f"Take {word} and sort the list of all words by size" for word in "abcde"),
    ],
)
def test_a_text_that_runs_in_a_circle_is_repetition(text):
    assert verdict(text) == "repetition"


@pytest.mark.parametrize(
    "text",
    [
        "Write it twice, twice.",
        "That that is, is; that that is not, is not.",
        "Count from 1 to 10 and say whether the number is even or odd.",
        "Sort the list by size, then sort the list by name.",
        "Wait for it... then answer.",
    ],
)
def test_ordinary_repetition_is_fine(text):
    assert verdict(text) is None


WORDS = st.sampled_from(["write", "opposite", "sort", "list", "count", "the", "name", "word", "of"])


@given(st.lists(WORDS, min_size=1, max_size=6, unique=True), st.integers(4, 8))
def test_any_stretch_repeated_often_enough_is_repetition(stretch, times):
    text = " ".join(stretch * times)
    assert verdict(text, cap=10_000) == "repetition"


@given(st.lists(WORDS, min_size=1, max_size=9, unique=True))
def test_distinct_words_pass(words):
    assert verdict(" ".join(words)) is None


@given(st.from_regex(r"[a-z]{4,10}", fullmatch=True), st.from_regex(r"[a-z]{4,10}", fullmatch=True))
def test_a_telling_pair_leaks_in_any_order_and_case_but_not_inside_other_words(one, other):
    assume(one not in other and other not in one and not {one, other} & COMMON)
    pairs = ((one, other),)
    assert verdict(f"Given {one.upper()} say {other}", pairs) == "leaked_exemplar"
    assert verdict(f"Say {other} for {one}.", pairs) == "leaked_exemplar"
    assert verdict(f"Given x{one} say {other}y", pairs) in {None, "repetition"}


ANY = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)


@given(st.text(max_size=400), ANY, ANY)
def test_any_text_gets_a_verdict(text, one, other):
    assert verdict(text, ((one, other),)) in {
        None, "empty", "too_long", "placeholder", "repetition", "leaked_exemplar"
    }  # fmt: skip
