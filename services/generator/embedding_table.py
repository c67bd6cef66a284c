"""A model's embedding table alone: the rows it reads for token ids, without its other weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from instructzero.errors import InvalidRequest
from services.generator.model_folder import ModelFolder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CHUNK = 4_096


class EmbeddingTable:
    """Looks up rows with the model's own embedding module, which scales them where it does."""

    def __init__(self, module: nn.Embedding, n_tokens: int) -> None:
        """Take the module; `n_tokens` is the tokenizer's size: tables are padded beyond it."""
        self._module = module
        self._n_rows = min(n_tokens, module.num_embeddings)

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Return the rows that the model reads for token ids."""
        with torch.inference_mode():
            tokens = torch.tensor(list(ids), dtype=torch.long, device=self._module.weight.device)
            found: Tensor = self._module(tokens)
        return found

    def chunks(self) -> Iterator[Tensor]:
        """Yield the rows of every token of the tokenizer."""
        for start in range(0, self._n_rows, CHUNK):
            yield self.rows(range(start, min(start + CHUNK, self._n_rows)))


def load_table(
    folder: ModelFolder, config: PretrainedConfig, dtype: torch.dtype, n_tokens: int
) -> EmbeddingTable:
    """Read a checkpoint's embedding table into memory, and nothing else of it.

    Raises:
        InvalidRequest: the weights hold no such table, or one of another size.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    module = model.get_input_embeddings()
    name = next(name for name, part in model.named_modules() if part is module)
    weight = _read_tensor(folder.path, f"{name}.weight")
    if weight.shape != module.weight.shape:
        raise _no_table(
            f"has the shape {tuple(weight.shape)}, config.json says {tuple(module.weight.shape)}"
        )
    module.to_empty(device="cpu")
    module.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    # What no file holds (a scale that follows from the width, say) transformers fills in here; the
    # mark tells it that the table itself is complete.
    module.weight._is_hf_initialized = True
    model._init_weights(module)
    return EmbeddingTable(module.eval(), n_tokens)


def _read_tensor(folder: Path, name: str) -> Tensor:
    # Checkpoints of the same model name it with and without the prefixes of outer modules.
    parts = name.split(".")
    wanted = [".".join(parts[start:]) for start in range(len(parts) - 1)]
    places: dict[str, Path] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                places |= dict.fromkeys(file.keys(), path)
        for suffix in wanted:
            found = [key for key in places if key == suffix or key.endswith(f".{suffix}")]
            if len(found) == 1:
                with safe_open(places[found[0]], framework="pt") as file:
                    tensor: Tensor = file.get_tensor(found[0])
                return tensor
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(
            f"the model's weights cannot be read ({type(error).__name__}): a file is damaged; "
            "fetch the model again",
            reason="invalid_model",
        ) from error
    raise _no_table(f"is not there under the name {name}")


def _no_table(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model cannot be steered by embeddings: its embedding table {what}; use the model "
        "with --engine transformers, or another one",
        reason="no_embeddings",
    )
