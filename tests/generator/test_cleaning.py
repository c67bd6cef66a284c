from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.generator.cleaning import clean

CASES = {
    "  Write the opposite.  ": "Write the opposite.",
    " Instruction: Write the opposite.": "Write the opposite.",
    "**Instruction:** Write the opposite.": "Write the opposite.",
    "The instruction was to write the opposite.": "write the opposite.",
    "The original instruction was likely to sort them": "sort them",
    "The instruction is: Sort them": "Sort them",
    "Sure! Here is the instruction:\n\nSort them.": "Sort them.",
    "Here's a possible instruction for this: Sort them.": "Sort them.",
    '"Write the opposite."': "Write the opposite.",
    "“Write the opposite.”": "Write the opposite.",
    "Instruction: 'Sort them.'": "Sort them.",
    "'Instruction: Sort them.'": "Sort them.",
    '"Write the opposite': "Write the opposite",
    "**Sort them.**": "Sort them.",
    'Say "yes" or "no"': 'Say "yes" or "no"',
    '"Yes" or "no"': '"Yes" or "no"',
    "Don't write the dogs' names": "Don't write the dogs' names",
    "Sort them.\n\nInput: b a\nOutput: a b": "Sort them.",
    "Sort them.\nInput: b a": "Sort them.",
    "Sort the words\nby length.": "Sort the words by length.",
    "Sort them.\r\n\r\nThis works because": "Sort them.",
    "Sort them.<|im_end|>\n<|im_start|>user": "Sort them.",
    "<|assistant|> Sort them.</s>": "Sort them.",
    "Sort them. [/INST] Sure": "Sort them.",
    "Sort them.<end_of_turn>": "Sort them.",
    "assistant\n\nSort them.": "Sort them.",
    "<think>\nThey are sorted.\n\nSo:</think>\n\nSort them.": "Sort them.",
    "<think>They are sorted, and": "",
    "So\x00rt\x1b th\u200bem\ufffd.": "Sort them.",
    "Sort\tthem  now.": "Sort them now.",
    "Instruction manuals should be sorted": "Instruction manuals should be sorted",
    "Here is the list: sort it": "Here is the list: sort it",
    "Compare a < b and a |> b": "Compare a < b and a |> b",
    "": "",
    " \n\n ": "",
    '""': "",
}


@pytest.mark.parametrize(("written", "wanted"), CASES.items())
def test_what_a_model_writes_becomes_one_plain_line(written, wanted):
    assert clean(written) == wanted


PIECES = st.sampled_from(
    ['"', "'", "“", "”", "**", "Instruction:", "The instruction was to", "\n", "\n\n", " ", "Sort",
     "Sure!", "Here is the instruction:", "<think>", "</think>", "<|im_end|>", "</s>", "Input:",
     "assistant:", "\x00", "\u200b", "é", "[INST]"]
)  # fmt: skip


@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=60)))
def test_cleaning_twice_changes_nothing_and_leaves_one_visible_line(written):
    text = clean(written)
    assert clean(text) == text
    assert text == text.strip()
    assert not {"\n", "\r", "\t"} & set(text)
    assert not {unicodedata.category(character) for character in text} & {"Cc", "Cs", "Co", "Cn"}
