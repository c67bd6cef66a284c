"""The meta-prompt: the text around the exemplars that asks the model for the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from instructzero.contracts import ExemplarPair
from instructzero.errors import InvalidRequest

FILE_NAME = "meta_prompt.json"


class UserTurn(NamedTuple):
    """What the user says to the model, in the two parts between which a soft prompt may stand."""

    shown: str
    asked: str


def _one_of_each(exemplar: str) -> str:
    for placeholder in ("{input}", "{output}"):
        if exemplar.count(placeholder) != 1:
            raise ValueError(f"must hold {placeholder} exactly once")
    return exemplar


class MetaPrompt(BaseModel):
    """Text before the exemplars, the form of one exemplar, text after them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    before: str = Field(max_length=20_000)
    exemplar: Annotated[str, StringConstraints(max_length=2_000), AfterValidator(_one_of_each)] = (
        "Input: {input}\nOutput: {output}\n"
    )
    after: str = Field(max_length=20_000)

    def render(self, exemplars: Sequence[ExemplarPair]) -> UserTurn:
        """Return the user's words for some exemplars."""
        pairs = "".join(self._pair(exemplar) for exemplar in exemplars)
        return UserTurn(self.before + pairs, self.after)

    def _pair(self, exemplar: ExemplarPair) -> str:
        # In one pass, so that braces in an exemplar's own text stay what they are.
        head, first, rest = self._split("{input}", "{output}")
        values = {"{input}": exemplar.input, "{output}": exemplar.output}
        second = "{output}" if first == "{input}" else "{input}"
        between, _, tail = rest.partition(second)
        return f"{head}{values[first]}{between}{values[second]}{tail}"

    def _split(self, one: str, other: str) -> tuple[str, str, str]:
        first = min(one, other, key=self.exemplar.index)
        head, _, rest = self.exemplar.partition(first)
        return head, first, rest


CHAT = MetaPrompt(
    id="chat-1",
    before=("Somebody followed one instruction for every input below and wrote these outputs.\n\n"),
    exemplar="Input: {input}\nOutput: {output}\n\n",
    after=(
        "What was the instruction? It must work for new inputs too, so describe the task and do "
        "not repeat the examples. Answer with the instruction alone, in one or two sentences."
    ),
)
"""For models that were trained to hold a conversation."""

COMPLETION = MetaPrompt(
    id="completion-1",
    before="Somebody followed one instruction for every input below and wrote these outputs.\n\n",
    exemplar="Input: {input}\nOutput: {output}\n\n",
    after="The instruction was to",
)
"""For models that only continue a text."""


def read_meta_prompt(path: Path) -> MetaPrompt:
    """Read a meta-prompt file.

    Raises:
        InvalidRequest: there is none, or it is wrong; says what to change.
    """
    try:
        return MetaPrompt.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(
            f"the meta-prompt file {path} cannot be read ({error.strerror})",
            reason="invalid_meta_prompt",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = "/".join(str(part) for part in first["loc"]) or "the file"
        detail = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidRequest(
            f"the meta-prompt file {path} is wrong: {where}: {detail}",
            reason="invalid_meta_prompt",
        ) from error


def choose_meta_prompt(folder: Path, given: Path | None, *, is_chat: bool) -> MetaPrompt:
    """Return the meta-prompt for a model: the one given, the model's own, or ours.

    Raises:
        InvalidRequest: the file is wrong.
    """
    own = folder / FILE_NAME
    if given is not None:
        return read_meta_prompt(given)
    if own.is_file():
        return read_meta_prompt(own)
    return CHAT if is_chat else COMPLETION
