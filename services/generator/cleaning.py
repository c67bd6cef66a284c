"""From what the model wrote to one line that a target model can be given."""

from __future__ import annotations

import re
import unicodedata

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_MARK = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>|\[/?INST\]|<</?SYS>>"
)
_ROLE = re.compile(r"\A(?:assistant|model)[ \t]*(?::|\n)", re.IGNORECASE)
_PREAMBLE = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay|ok)\b[!,.]?\s*)?"
    r"here(?:'s|’s| is) (?:an?|the|my|your)\b[^\n:]{0,80}?\b(?:instruction|prompt)\b[^\n:]{0,80}:",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\A[*_#>\s]*(?:the )?instruction\b[*_]*\s*:[*_]*", re.IGNORECASE)
_SENTENCE = re.compile(
    r"\A(?:the|my)\s+(?:original\s+|likely\s+|given\s+)?instruction\s+(?:given\s+)?"
    r"(?:was|is|could be|might be|would be|may have been)"
    r"(?:\s+(?:likely|probably|simply))?(?:\s+to\b|\s*:)",
    re.IGNORECASE,
)
_LEADS = (_ROLE, _PREAMBLE, _LABEL, _SENTENCE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_NEXT_EXEMPLAR = re.compile(r"\n\s*(?:input|output)\s*:", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}
_INVISIBLE = {
    *"\u00ad\u200b\u200e\u200f\u2060\ufeff\ufffd",
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
}
"""Marks that change what a reader sees or that a cut-off character leaves behind."""


def clean(written: str) -> str:
    """Return the instruction in what a model wrote, on one line; empty if there is none.

    Removed are: thoughts and chat marks, control characters, a lead such as `Instruction:` or
    `The instruction was to`, everything from the first blank line or further exemplar on, and
    quotation marks around the whole. Cleaning twice changes nothing more.
    """
    text = written
    while (shorter := _clean_once(text)) != text:
        text = shorter
    return text


def _clean_once(written: str) -> str:
    text = _THOUGHT.sub("", written.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(character for character in text if _is_visible(character)).strip()
    while mark := _MARK.match(text):
        text = text[mark.end() :].lstrip()
    text = _MARK.split(text, maxsplit=1)[0].rstrip()
    for lead in _LEADS:
        text = lead.sub("", text, count=1).lstrip()
    for end in (_BLANK_LINE, _NEXT_EXEMPLAR):
        text = end.split(text, maxsplit=1)[0]
    return _unquoted(_SPACE.sub(" ", text).strip())


def _is_visible(character: str) -> bool:
    if character in "\n\t":
        return True
    return character not in _INVISIBLE and unicodedata.category(character) not in {
        "Cc",
        "Cs",
        "Co",
        "Cn",
    }


def _unquoted(text: str) -> str:
    """Remove quotation marks around the whole, or one at the start that nothing closes."""
    closing = _QUOTES.get(text[:1])
    if closing is None:
        return text.removeprefix("**").removesuffix("**") if _is_bold(text) else text
    inner = text[1:-1] if len(text) > 1 and text.endswith(closing) else text[1:]
    if text[0] in inner or closing in inner:
        return text
    return inner.strip()


def _is_bold(text: str) -> bool:
    return len(text) > 4 and text.startswith("**") and text.endswith("**") and text.count("**") == 2
