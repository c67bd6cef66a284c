"""What the service needs of an engine: the Protocol that each engine meets."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EngineFacts:
    """What an engine and its model are.

    Attributes:
        spread: the embedding table's, see `soft_prompt.table_spread`.
        context_tokens: how much the model reads and writes together; None if it does not say.
    """

    name: str
    version: str
    dtype: str
    device: str
    hidden_size: int
    spread: float
    context_tokens: int | None


@dataclass(frozen=True, eq=False)
class Prompt:
    """Embedding rows of one prompt; prompts of one request share head and tail.

    Attributes:
        head: rows x hidden_size, before the soft prompt.
        soft: n_tokens x hidden_size, float32.
        tail: rows x hidden_size, after it.
        seed: for sampling, when the temperature is not 0.
    """

    head: Tensor
    soft: Tensor
    tail: Tensor
    seed: int = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.head) + len(self.soft) + len(self.tail)

    def rows(self) -> Tensor:
        """Return the prompt's rows in the model's own type, on its device."""
        return torch.cat([self.head, self.soft.to(self.tail), self.tail])


@dataclass(frozen=True)
class Decoding:
    """How text is written; a temperature of 0 is greedy.

    Attributes:
        salt: prompts of different salts share nothing in an engine's prefix cache.
    """

    max_tokens: int
    temperature: float = 0.0
    features: bool = False
    salt: str = ""


class Written(NamedTuple):
    """What the model wrote for one prompt, as it came.

    Attributes:
        tokens: tokens written, without the one that ended the text.
        finish_reason: `stop`, `length`, or `non_finite` if the model's numbers broke down.
        features: mean over the prompt of the last layer's hidden states, if asked for.
    """

    text: str
    tokens: int
    finish_reason: str
    features: tuple[float, ...] | None = None


BROKEN = Written("", 0, "non_finite")


class Finished(NamedTuple):
    """A text that is finished, and its prompt's place among those that were asked for."""

    place: int
    written: Written


class Engine(Protocol):
    """Writes texts for prompts of embeddings."""

    @property
    def facts(self) -> EngineFacts:
        """What it is."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        ...

    async def check(self) -> None:
        """Check, before the first request, what could not be checked while it was loaded.

        Raises:
            InvalidRequest: the model cannot be used; says what to do.
        """
        ...

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return the rows the model reads for token ids, scaled as it scales them."""
        ...

    def write(
        self, prompts: Sequence[Prompt], decoding: Decoding
    ) -> AsyncGenerator[list[Finished], None]:
        """Write one text per prompt; yields them as they are finished, some at a time.

        Closing the generator, or cancelling the task that waits for it, ends the work.

        Raises:
            InvalidRequest: it is asked for what this engine cannot give.
            GeneratorUnavailable: the engine failed, or has no memory for it.
        """
        ...

    def state(self) -> str:
        """Return `ok`, or what is wrong."""
        ...

    async def aclose(self) -> None:
        """Finish the work in hand and give the model's memory back."""
        ...
