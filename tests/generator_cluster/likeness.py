"""Whether two engines wrote the same, and how close a call it was where they did not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from services.generator.cleaning import clean
from services.generator.engine import Prompt
from services.generator.transformers_engine import TransformersEngine


def gap_at_first_difference(engine: TransformersEngine, prompt: Prompt, other: str) -> float:
    """Return the distance of the two likeliest tokens where `other` leaves the greedy text.

    The greedy text is written anew without a cache, padding or neighbours, token by token.
    """
    rows, ids = prompt.rows(), list[int]()
    with torch.inference_mode():
        while len(ids) < 1024:
            written = engine.embed(ids) if ids else rows[:0]
            logits = engine._model(inputs_embeds=torch.cat([rows, written])[None]).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            ids.append(int(logits.argmax()))
            text = str(engine.tokenizer.decode(ids, skip_special_tokens=True))
            if ids[-1] in engine._stop_ids or not clean(other).startswith(clean(text)):
                return float(first - second)
    raise AssertionError("the texts do not differ")


def check_likeness(
    engine: TransformersEngine,
    prompts: Sequence[Prompt],
    pairs: Iterable[tuple[str, str]],
    *,
    share: float,
    gap: float,
) -> None:
    """Check that nearly all pairs are equal, and the others were decided by nearly nothing."""
    differing = [(i, other) for i, (one, other) in enumerate(pairs) if one != other]
    assert len(differing) <= (1 - share) * len(prompts), f"{len(differing)} of {len(prompts)}"
    for i, other in differing:
        assert gap_at_first_difference(engine, prompts[i], other) < gap
