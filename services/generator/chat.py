"""The user's turn in the model's own chat format, as token ids on both sides of the soft prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jinja2 import TemplateError

from instructzero.contracts import ExemplarPair
from instructzero.errors import InvalidRequest
from services.generator.meta_prompt import MetaPrompt, UserTurn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SoftPosition = Literal["prefix", "suffix"]
TEMPLATE_DATE = "26 Jul 2024"
"""Some templates write today's date; a search space may not change at midnight."""
CALENDAR = f"{{%- macro strftime_now(form) -%}}{TEMPLATE_DATE}{{%- endmacro -%}}"
"""Stands before the template and hides the clock that transformers offers to it."""


class Frame(NamedTuple):
    """Text around what the user says: BOS and the turn's opening, and all up to the answer."""

    opening: str
    closing: str


class TokenHalves(NamedTuple):
    """Token ids before and after the soft prompt."""

    head: tuple[int, ...]
    tail: tuple[int, ...]


class ChatFormat:
    """Puts the user's turn into a model's chat template, or after BOS where it has none.

    With `prefix` the soft prompt is the first thing in the user's turn; with `suffix` it stands
    between the exemplars and the question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.is_chat = bool(tokenizer.chat_template)
        self._special = tuple(
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special and token.content.strip()
        )

    def halves(self, turn: UserTurn, position: SoftPosition) -> TokenHalves:
        """Return the token ids on both sides of the soft prompt.

        Raises:
            InvalidRequest: the template cannot show a user's turn.
        """
        said = turn.shown + turn.asked
        frame = self.frame(said)
        before, after = ("", said) if position == "prefix" else turn
        head = self._ids(frame.opening) if self.is_chat else self._beginning()
        return TokenHalves(
            (*head, *self._said(before, "")),
            self._said(after.rstrip() if self.is_chat else after, frame.closing),
        )

    def frame(self, said: str = "") -> Frame:
        """Return the template's text around the user's words."""
        if not self.is_chat:
            return Frame("", "")
        mark = _unused(said)
        messages = [{"role": "user", "content": mark}]
        parts = self._rendered(messages).split(mark)
        if len(parts) != 2:
            raise _template_problem("shows the user's words more than once, or not at all")
        return Frame(*parts)

    def stop_ids(self) -> tuple[int, ...]:
        """Return the tokens that end the model's turn, as the tokenizer and its template say."""
        ids = [self._tokenizer.eos_token_id]
        if self.is_chat:
            mark = _unused("")
            turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
            try:
                rendered = self._rendered(turn, answer_next=False)
            except InvalidRequest:
                rendered = ""  # a template without answers names no end of one
            after = self._ids(rendered.partition(mark)[2].lstrip())
            if after and self._tokenizer.convert_ids_to_tokens(after[0]) in self._special:
                ids.append(after[0])
        return tuple(dict.fromkeys(token for token in ids if token is not None))

    def describe(self, meta_prompt: MetaPrompt) -> str:
        """Return the whole prompt with a stand-in exemplar: what the fingerprint covers."""
        turn = meta_prompt.render([ExemplarPair(input="{input}", output="{output}")])
        opening, closing = self.frame()
        beginning = "" if self.is_chat else str(self._beginning())
        return "\x1f".join((beginning, opening, turn.shown, turn.asked, closing))

    def _rendered(self, messages: list[dict[str, str]], *, answer_next: bool = True) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=answer_next,
                    enable_thinking=False,
                    chat_template=CALENDAR + self._tokenizer.get_chat_template(),
                )
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise _template_problem(f"cannot be used ({type(error).__name__})") from error

    def _beginning(self) -> tuple[int, ...]:
        bos = self._tokenizer.bos_token_id
        return () if bos is None else (int(bos),)

    def _said(self, said: str, closing: str) -> tuple[int, ...]:
        """Return ids of the user's words and what follows; the words cannot forge a chat mark."""
        if any(mark in said for mark in self._special):
            return (*self._ids(said, is_plain=True), *self._ids(closing))
        return self._ids(said + closing)

    def _ids(self, text: str, *, is_plain: bool = False) -> tuple[int, ...]:
        if not text:
            return ()
        encoded: Any = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=is_plain, verbose=False
        )
        return tuple(encoded["input_ids"])


def _unused(text: str) -> str:
    """Return a mark that the text does not hold and that no template rewrites."""
    number = 0
    while (mark := f"SOFT{number}PROMPT") in text:
        number += 1
    return mark


def _template_problem(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model's chat template {what}; use another model, or correct the template "
        "(chat_template.jinja in the model's folder)",
        reason="invalid_chat_template",
    )
