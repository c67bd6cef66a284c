"""Guards: texts that no target model should be paid to read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from instructzero.contracts import ExemplarPair

_PLACEHOLDER = re.compile(r"\{\s*(?:instruction|input|output)\s*\}", re.IGNORECASE)
_ARROW = r"\W{0,3}\s*(?:->|=>|→|⇒|\boutput\b\s*:)\s*\W{0,3}"
_CHARACTER_LOOP = re.compile(r"(\S)\1{11}|(\S{2,16}?)\2{5}")
_WORD = re.compile(r"\w+|[^\w\s]")
MAX_LOOP_WORDS = 12
MIN_ANSWER_LETTERS = 4
MIN_QUESTION_LETTERS = 2
COMMON = frozenset(
    re.findall(
        r"\w+",
        """
        about above after also another answer before below both correct does each either else entail
        even every false first from given have here input into just last less letter like list many
        more most much name negative neither neutral none number only order other output over
        positive same second sentence some such text than that their them then there these they this
        those true under unknown upon very were what when where which will with without word words
        yes your
        """,
    )
)
"""Words that an instruction uses without giving an answer away."""


def reject(text: str, exemplars: Sequence[ExemplarPair], *, max_characters: int) -> str | None:
    """Name the guard that rejects a cleaned text; None if it may be tried.

    Args:
        text: one line, as `cleaning.clean` returns it.
        exemplars: what the generator model was shown.
        max_characters: the length cap.

    Returns:
        `empty`, `too_long`, `placeholder`, `repetition`, `leaked_exemplar` or None.
    """
    if not any(character.isalnum() for character in text):
        return "empty"
    if len(text) > max_characters:
        return "too_long"
    if _PLACEHOLDER.search(text):
        return "placeholder"
    if _is_loop(text):
        return "repetition"
    if _leaks(text, exemplars):
        return "leaked_exemplar"
    return None


def _is_loop(text: str) -> bool:
    """Whether a text runs in a circle.

    True for a stretch of one to twelve words (or punctuation marks) that stands three times in a
    row (a single word: four times), for a letter twelve times or a short string six times in a row,
    and for a text of at least twenty words in which fewer than half of the word triples are new.
    """
    if _CHARACTER_LOOP.search(text):
        return True
    words = _WORD.findall(text.casefold())
    for length in range(1, MAX_LOOP_WORDS + 1):
        times = 4 if length == 1 else 3
        run = 0  # how many words in a row equal the word `length` places before
        for here, before in zip(words[length:], words, strict=False):
            run = run + 1 if here == before else 0
            if run >= length * (times - 1):
                return True
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(triples) >= 20 and len(set(triples)) < len(triples) / 2


def _leaks(text: str, exemplars: Sequence[ExemplarPair]) -> bool:
    """Whether a text tells the answer of an exemplar.

    It does when it holds the exemplar's input and its output as whole words, and either

    - both are telling: the output has four letters or more, is no common word, and is the output of
      this exemplar alone (an output that several share is a label, and naming labels is what a
      good instruction does); or
    - they stand as a pair, `input -> output` or `input Output: output`, however short they are.

    So `Give the letter after a` is fine beside the exemplar (a, b), and so is `Answer positive or
    negative`; `Write the opposite: sane becomes insane` is not, beside (sane, insane).
    """
    folded = _folded(text)
    counts = Counter(_folded(exemplar.output) for exemplar in exemplars)
    for exemplar in exemplars:
        question, answer = _folded(exemplar.input), _folded(exemplar.output)
        if not question or not answer or question not in folded or answer not in folded:
            continue
        pair = re.compile(rf"(?<!\w){re.escape(question)}{_ARROW}{re.escape(answer)}(?!\w)")
        if pair.search(folded):
            return True
        is_telling = (
            counts[answer] == 1
            and _is_telling(answer, MIN_ANSWER_LETTERS)
            and _is_telling(question, MIN_QUESTION_LETTERS)
        )
        if is_telling and _stand_apart(folded, question, answer):
            return True
    return False


def _stand_apart(text: str, one: str, other: str) -> bool:
    """Whether both strings stand in the text as whole words, at places that do not overlap."""
    places = [
        [match.span() for match in re.finditer(rf"(?<!\w){re.escape(part)}(?!\w)", text)]
        for part in (one, other)
    ]
    return any(
        end <= start or stop <= begin for begin, end in places[0] for start, stop in places[1]
    )


def _is_telling(text: str, minimum: int) -> bool:
    letters = sum(character.isalnum() for character in text)
    return letters >= minimum and text not in COMMON


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
