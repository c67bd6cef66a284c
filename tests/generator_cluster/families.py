"""Random models of families that treat embeddings in their own ways, in sizes that vLLM takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.generator.models import save_model

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}
GEMMA_SIZES = {"num_hidden_layers": 8, "sliding_window": 256}
"""One layer of eight attends to everything, as in the real ones."""


def save_family(folder: Path, family: str) -> Path:
    """Save a random model of a family with its tokenizer."""
    if family != "gemma3":
        return save_model(folder, family, **SIZES)
    save_model(folder, family, **SIZES, **GEMMA_SIZES)
    _let_layers_speak(folder / "model.safetensors")
    return folder


def _let_layers_speak(path: Path) -> None:
    """Weigh what layers add: else a tied, scaled, untrained model repeats its last token."""
    tensors = load_file(path)
    for name in tensors:
        if name.endswith(("attention_layernorm.weight", "feedforward_layernorm.weight")):
            tensors[name] += 10
    save_file(tensors, path, metadata={"format": "pt"})
