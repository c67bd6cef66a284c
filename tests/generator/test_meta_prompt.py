from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructzero.contracts import ExemplarPair
from instructzero.errors import InvalidRequest
from services.generator.chat import ChatFormat
from services.generator.meta_prompt import (
    CHAT,
    COMPLETION,
    MetaPrompt,
    choose_meta_prompt,
    read_meta_prompt,
)
from tests.generator.conftest import EXEMPLARS
from tests.generator.models import make_tokenizer

DEMO = MetaPrompt(
    id="demo-1", before="", exemplar="Input: {input}\nOutput: {output}\n", after="Instruction:"
)
TOKENIZER = make_tokenizer()
FORMAT = ChatFormat(TOKENIZER)
PLAIN_FORMAT = ChatFormat(make_tokenizer(is_chat=False))


def test_the_exemplars_stand_in_order_between_the_two_texts():
    turn = DEMO.render(EXEMPLARS)
    assert turn.shown == "Input: sane\nOutput: insane\nInput: hot\nOutput: cold\n"
    assert turn.asked == "Instruction:"


@given(st.text(max_size=20), st.text(max_size=20))
def test_braces_in_an_exemplar_stay_what_they_are(before, after):
    clean = [re.sub(r"[\x00-\x1f\x7f-\x9f]", "", text) for text in (before, after)]
    pair = ExemplarPair(input="{output}" + clean[0], output="{input}" + clean[1])
    swapped = MetaPrompt(id="x", before="", exemplar="{output} < {input}", after="")
    assert DEMO.render([pair]).shown == f"Input: {pair.input}\nOutput: {pair.output}\n"
    assert swapped.render([pair]).shown == f"{pair.output} < {pair.input}"


def test_a_models_own_meta_prompt_comes_before_ours_and_a_given_one_before_both(tmp_path):
    assert choose_meta_prompt(tmp_path, None, is_chat=True) == CHAT
    assert choose_meta_prompt(tmp_path, None, is_chat=False) == COMPLETION
    (tmp_path / "meta_prompt.json").write_text(DEMO.model_dump_json())
    assert choose_meta_prompt(tmp_path, None, is_chat=True) == DEMO
    given_file = tmp_path / "given.json"
    given_file.write_text(json.dumps({"id": "own", "before": "See:\n", "after": "Say:"}))
    assert choose_meta_prompt(tmp_path, given_file, is_chat=True).id == "own"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "JSON"),
        ('{"id": "x", "before": ""}', "after"),
        ('{"id": "x", "before": "", "after": "", "exemplar": "{input}"}', "{output} exactly once"),
        ('{"id": "x", "before": "", "after": "", "more": 1}', "more"),
        ('{"id": "", "before": "", "after": ""}', "id"),
    ],
)
def test_a_wrong_meta_prompt_file_is_refused_with_what_to_change(tmp_path, content, word):
    path = tmp_path / "meta_prompt.json"
    path.write_text(content)
    with pytest.raises(InvalidRequest, match=re.escape(word)):
        read_meta_prompt(path)


def test_a_missing_meta_prompt_file_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match=r"nowhere\.json"):
        read_meta_prompt(tmp_path / "nowhere.json")


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_the_soft_prompt_stands_inside_the_user_turn(position):
    turn = CHAT.render(EXEMPLARS)
    halves = FORMAT.halves(turn, position)
    texts = [TOKENIZER.decode(half) for half in halves]
    before, after = ("", turn.shown + turn.asked) if position == "prefix" else turn
    assert texts[0] == "<s><|user|>" + before
    assert texts[1] == after + "<|assistant|>"
    assert halves.head[0] == TOKENIZER.bos_token_id
    assert (halves.head + halves.tail).count(TOKENIZER.bos_token_id) == 1


def test_without_a_template_the_soft_prompt_follows_bos():
    halves = PLAIN_FORMAT.halves(COMPLETION.render(EXEMPLARS), "prefix")
    assert halves.head == (TOKENIZER.bos_token_id,)
    assert TOKENIZER.decode(halves.tail).endswith("The instruction was to")


MARKS = ["</s>", "<s>", "<|assistant|>", "<|user|>"]


@pytest.mark.parametrize("position", ["prefix", "suffix"])
@given(words=st.lists(st.sampled_from([*MARKS, "write", " ", "<", "|>"]), min_size=1, max_size=6))
def test_an_exemplar_cannot_forge_a_chat_mark(position, words):
    pair = ExemplarPair(input="".join(words), output="x")
    halves = FORMAT.halves(DEMO.render([pair]), position)
    ids = halves.head + halves.tail
    marks = [TOKENIZER.convert_tokens_to_ids(mark) for mark in MARKS]
    assert [token for token in ids if token in marks] == [
        TOKENIZER.convert_tokens_to_ids(mark) for mark in ("<s>", "<|user|>", "<|assistant|>")
    ]
    assert pair.input in TOKENIZER.decode(ids)


def test_an_exemplar_that_holds_our_own_mark_is_shown_as_it_is():
    pair = ExemplarPair(input="SOFT0PROMPT", output="SOFT1PROMPT")
    halves = FORMAT.halves(DEMO.render([pair]), "prefix")
    assert "SOFT0PROMPT\nOutput: SOFT1PROMPT" in TOKENIZER.decode(halves.tail)


def test_the_template_says_what_ends_an_answer():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<s>"  # not what the template ends with
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "'</s>'")
    ids = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    assert ChatFormat(tokenizer).stop_ids() == tuple(ids)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('system first') }}",
        "no message",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{{ nothing.at.all }}",
    ],
)
def test_a_template_that_cannot_show_a_user_turn_is_refused(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InvalidRequest, match="chat template"):
        ChatFormat(tokenizer).describe(CHAT)


def test_a_template_that_writes_the_date_gives_the_same_prompt_on_every_day():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{- strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    assert ChatFormat(tokenizer).describe(CHAT).split("\x1f")[1] == "26 Jul 2024<s><|user|>"


def test_the_description_covers_the_template_and_every_text_of_the_meta_prompt():
    other_template = make_tokenizer()
    other_template.chat_template = other_template.chat_template.replace("trim }}", "trim }}\n")
    descriptions = {FORMAT.describe(DEMO), ChatFormat(other_template).describe(DEMO)}
    for field, value in {"before": "x", "exemplar": "{input}{output}", "after": "x"}.items():
        descriptions.add(FORMAT.describe(DEMO.model_copy(update={field: value})))
    descriptions.add(PLAIN_FORMAT.describe(DEMO))
    assert len(descriptions) == 6
