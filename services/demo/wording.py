"""Free wordings of an instruction, as people write them: learned besides the corpus.

The generator never writes these. A tenth of them is held out, to show how far a wording that was
never seen is understood.
"""

from __future__ import annotations

import random
import re

from services.demo.corpus import CLARITY, DATA, PHRASES, TASKS, VERBS, Instruction, fraction
from services.demo.corpus import INSTRUCTIONS as CORPUS_TEXTS

HELD_OUT_SHARE = 0.1
IDLE: list[str] = DATA["idle"]
"""Texts that ask for nothing."""
ASKED: dict[str, list[str]] = DATA["asked"]
"""Instructions written by hand for the evaluation alone; training skips them."""
_ASKED_TEXTS = frozenset(text for texts in ASKED.values() for text in texts)
_EXACT_SHARE = 0.75
_COMMAND_SHARE = 0.25
_FREE_VERBS = (
    *VERBS,
    *("Provide", "Return", "State", "Tell me", "Print", "Produce", "Identify", "Determine"),
    *("Answer with", "Respond with", "Reply with", "Generate", "Give me", "Show", "Choose"),
)
_REQUESTS = (
    *("{Command}.", "{Command}.", "{Command}.", "{Command}", "{command}", "{command}."),
    *("Please {command}.", "Please {command}.", "Please {command}", "please {command}"),
    *("{Command}, please.", "Can you {command}?", "Could you {command}?", "You must {command}."),
    *("Could you please {command}?", "Your task is to {command}.", "I want you to {command}."),
    *("For each input, {command}.", "For the input below, {command}.", "You should {command}."),
)
_BARE = ("{Phrase}.", "{Phrase}", "{phrase}", "{Phrase}:", "{phrase}.", "{Phrase}?")
_QUESTIONS = ("What is {phrase}?", "What is {phrase}?", "what is {phrase}", "What's {phrase}?")
_TAILS = (
    *(" Answer with one word.", " Only output the answer.", " Do not explain.", " Be brief."),
    *(" Answer in one word.", " Write nothing else."),
)
_TAIL_SHARE = 0.12
_OBJECT = re.compile(r"the (?:given )?(word|noun|verb|object|thing|country|input)$")
_OBJECTS = {
    "word": ("the word", "the given word", "the input", "the term", "this word", "a word"),
    "noun": ("the noun", "the given noun", "the word", "the input", "this noun"),
    "verb": ("the verb", "the given verb", "the word", "the input", "this verb"),
    "object": ("the object", "the given object", "the input", "the thing", "this object"),
    "thing": ("the thing", "the given thing", "the input", "the object", "this thing"),
    "country": ("the country", "the given country", "the input", "the nation", "this country"),
    "input": ("the input", "the given input", "the word", "this word", "the term"),
}


def reworded(draw: random.Random) -> tuple[str, Instruction]:
    """Draw a free wording and what it means; may be one of the held-out texts."""
    task = draw.choice(TASKS)
    if draw.random() < _EXACT_SHARE:
        own = DATA["wordings"][task]
        if draw.random() < _COMMAND_SHARE:
            return _request(draw, draw.choice(own["commands"])), Instruction(task, 0, CLARITY[0])
        phrase = draw.choice([*PHRASES[task][0], *own["phrases"]])
        meaning = Instruction(task, 0, CLARITY[0])
        phrase = _OBJECT.sub(lambda found: draw.choice(_OBJECTS[found.group(1)]), phrase)
    else:
        grade = draw.randint(1, 4)
        phrase = draw.choice(PHRASES[task][grade])
        meaning = CORPUS_TEXTS[f"{VERBS[0]} {phrase}."]
    form = draw.random()
    if form < 0.15:
        return _fill(draw.choice(_BARE), phrase, "phrase"), meaning
    if form < 0.3 and phrase.startswith(("the ", "a ", "an ")):
        return _fill(draw.choice(_QUESTIONS), phrase, "phrase"), meaning
    return _request(draw, f"{draw.choice(_FREE_VERBS)} {phrase}."), meaning


def is_held_out_wording(text: str) -> bool:
    """Whether training never shows this free wording."""
    if text in CORPUS_TEXTS:
        return False
    return text in _ASKED_TEXTS or fraction("w" + text) < HELD_OUT_SHARE


def _request(draw: random.Random, command: str) -> str:
    if command.endswith("?"):
        text = draw.choice((command, command, command.lower(), command[:-1]))
    else:
        text = _fill(draw.choice(_REQUESTS), command[:-1], "command")
    if text[-1] in ".?" and draw.random() < _TAIL_SHARE:
        text += draw.choice(_TAILS)
    return text


def _fill(form: str, text: str, name: str) -> str:
    lower, upper = text[0].lower() + text[1:], text[0].upper() + text[1:]
    return form.format(**{name: lower, name.capitalize(): upper})
