"""The demo model as the black box: greedy answers, each request alone, remembered by its prompt.

Nothing is batched: what else is in flight can never change an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from services.demo import chat
from services.demo.network import MAX_POSITIONS, Cache, load_network

DEFAULT_MAX_TOKENS = 64
_REMEMBERED = 50_000
_MAX_CHARACTERS = 40 * MAX_POSITIONS
"""Far beyond what fits: longer texts are refused unread."""


class Answer(NamedTuple):
    """What the model said, and what it would cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]


class TooLong(ValueError):
    """Prompt and answer do not fit into the context."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__(n_tokens)
        self.n_tokens = n_tokens


class Executor:
    """One loaded model; safe to use from several threads."""

    def __init__(self, model_path: Path) -> None:
        """Load weights and tokenizer."""
        self._network = load_network(model_path)
        self._tokenizer = chat.load_tokenizer(model_path)
        self._continuation = lru_cache(_REMEMBERED)(self._decode)

    def prompt(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> tuple[int, ...]:
        """Return the token ids of a chat.

        Raises:
            TooLong: with `max_tokens` more they would not fit into the context.
        """
        n_characters = sum(len(message["content"]) for message in messages)
        if n_characters > _MAX_CHARACTERS:
            raise TooLong(n_characters // 4 + max_tokens)
        ids = chat.render(self._tokenizer, messages)
        if len(ids) + max_tokens > MAX_POSITIONS:
            raise TooLong(len(ids) + max_tokens)
        return tuple(ids)

    def answer(
        self,
        prompt: tuple[int, ...],
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
    ) -> Answer:
        """Continue a prompt greedily up to its end, a stop text or `max_tokens`."""
        tokens, has_ended = self._continuation(prompt, max_tokens)
        text, n_tokens = self._text(tokens), len(tokens)
        cuts = [at for word in stop if (at := text.find(word)) >= 0]
        if cuts:
            text, has_ended = text[: min(cuts)], True
            n_tokens = next(
                n for n in range(len(tokens) + 1) if len(self._text(tokens[:n])) >= len(text)
            )
        return Answer(text, len(prompt), n_tokens, "stop" if has_ended else "length")

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True).removeprefix(" ")

    @torch.inference_mode()
    def _decode(self, prompt: tuple[int, ...], max_tokens: int) -> tuple[tuple[int, ...], bool]:
        network = self._network
        cache: Cache | None = None
        new: Tensor = torch.tensor([prompt])
        tokens: list[int] = []
        done = 0
        for _ in range(max_tokens):
            rotation = network.rotations[:, done : done + new.shape[1]]
            last, _, cache = network.model(F.embedding(new, network.table), rotation, cache)
            token = int(F.linear(last[0, -1], network.table).argmax())
            if token == chat.EOS_ID:
                return tuple(tokens), True
            tokens.append(token)
            done += new.shape[1]
            new = torch.tensor([[token]])
        return tuple(tokens), False


def one_thread_pool(n_threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads each compute on one core; other threads keep their setting."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads, "demo-target", initializer=_compute_on_one_core)
    for future in [pool.submit(torch.get_num_threads) for _ in range(n_threads)]:
        future.result()
    torch.set_num_threads(before)
    return pool


def _compute_on_one_core() -> None:
    torch.get_num_threads()  # a thread takes over the process's setting at its first question
    torch.set_num_threads(1)
