"""How transformers chooses the next token here: greedy or seeded, checked, and interruptible."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from services.generator.engine import Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Choice(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Leaves one token per row: the most likely, or one drawn from the row's own generator.

    transformers draws from the process-wide generator, so that a text would depend on every other
    request; here row i of a request depends on its own seed alone.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, stop_id: int) -> None:
        self._draws = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
        self._temperature = temperature
        self._stop_id = stop_id
        self.broken = torch.zeros(len(seeds), dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores in which one token of each row is left."""
        # NaN is the maximum of any row that holds one.
        broken = ~torch.isfinite(scores.max(dim=-1).values)
        self.broken |= broken.cpu()
        chosen = self._draw(scores) if self._temperature > 0 else scores.argmax(-1)
        chosen = chosen.masked_fill(broken, self._stop_id)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

    def _draw(self, scores: Tensor) -> Tensor:
        spread = torch.softmax(scores.double() / self._temperature, dim=-1).cumsum(-1)
        draws = torch.tensor([draw.random() for draw in self._draws], dtype=torch.float64)
        wanted = draws.to(scores.device)[:, None] * spread[:, -1:]
        return torch.searchsorted(spread, wanted, right=True)[:, 0].clamp(max=scores.shape[1] - 1)


class Interrupt(StoppingCriteria):  # type: ignore[misc]
    """Ends the work between two tokens when nobody waits for it any more."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return for each row whether it ends here."""
        return torch.full(
            (input_ids.shape[0],), self._stop.is_set(), dtype=torch.bool, device=input_ids.device
        )


class PromptStates:
    """A forward hook that keeps the mean of the prompt's last hidden states."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask
        self.mean: Tensor | None = None

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """Look at one forward pass; the first one is the prompt's."""
        if self.mean is None:
            states = output[0] if isinstance(output, tuple) else output.last_hidden_state
            weights = self._mask[:, :, None].to(torch.float32)
            self.mean = (states.float() * weights).sum(1) / weights.sum(1)


def read_ids(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    stop_ids: Collection[int],
    *,
    features: tuple[float, ...] | None = None,
) -> Written:
    """Return the text of what a model wrote, up to the first token that ends it."""
    length = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    kept = list(ids[:length])
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Written(str(text), len(kept), "length" if length is None else "stop", features)
