"""The demo model as the generator, for its own evaluation: soft prompts in, instructions out.

The product's generator service does the same with any model; this knows the demo model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from torch import Tensor

from services.demo import chat
from services.demo.corpus import Pair
from services.demo.network import Cache, load_network

_MAX_TOKENS = 24


class Writer:
    """Writes an instruction for each latent point, greedily, all points at once."""

    def __init__(self, folder: Path, *, n_tokens: int = 5, seed: int = 0) -> None:
        """Load the model; `seed` draws the projection."""
        self._network = load_network(folder)
        self._tokenizer = chat.load_tokenizer(folder)
        self._n_tokens, self._seed = n_tokens, seed

    def write(
        self,
        exemplars: Sequence[Pair],
        points: NDArray[np.float64],
        *,
        position: Literal["prefix", "suffix"] = "prefix",
    ) -> list[str]:
        """Return the instruction that each point (n x d, in [-1, 1]) gives."""
        shown = "".join(chat.EXEMPLAR.format(input=x, output=y) for x, y in exemplars)
        before, after = ("", shown) if position == "prefix" else (shown, "")
        head = [chat.BOS_ID, chat.USER_ID, *self._ids(before)]
        tail = [*self._ids(after + "Instruction:"), chat.ASSISTANT_ID]
        with torch.inference_mode():
            embed = self._network.model.embed_tokens
            parts = [embed(torch.tensor(ids)).expand(len(points), -1, -1) for ids in (head, tail)]
            return self._greedy(torch.cat([parts[0], self._soft(points), parts[1]], 1))

    def _soft(self, points: NDArray[np.float64]) -> Tensor:
        """Return A z, scaled so that it varies over the box as the embedding table does."""
        hidden = self._network.shape.hidden
        d = points.shape[1]
        projection = np.random.default_rng(self._seed).uniform(-1, 1, (self._n_tokens * hidden, d))
        rows = points @ projection.T / np.sqrt(d / 9)
        soft = torch.from_numpy(rows.astype(np.float32)) * self._network.table.std()
        return soft.reshape(len(points), self._n_tokens, hidden)

    def _greedy(self, embeddings: Tensor) -> list[str]:
        network, done = self._network, 0
        written: list[Tensor] = []
        ended = torch.zeros(len(embeddings), dtype=torch.bool)
        past: Cache | None = None
        while len(written) < _MAX_TOKENS and not ended.all():
            length = embeddings.shape[1]
            rotation = network.rotations[:, done : done + length]
            last, _, past = network.model(embeddings, rotation, past)
            tokens = F.linear(last[:, -1], network.table).argmax(1)
            ended |= tokens == chat.EOS_ID
            written.append(torch.where(ended, chat.EOS_ID, tokens))
            embeddings, done = F.embedding(tokens[:, None], network.table), done + length
        rows = torch.stack(written, 1).tolist()
        return [self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)
