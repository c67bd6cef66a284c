"""The demo model's network: a Llama small enough to train on two cores, in plain PyTorch.

Parameters are named as transformers names them, so that a saved model opens there and in vLLM.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from safetensors.torch import load_file, save
from torch import Tensor, nn

from services.demo import chat

KeysValues = tuple[Tensor, Tensor]
"""Of one layer, each rows x heads x length x head_dim."""
Cache = list[KeysValues]
TAP_LAYER = 1
"""The layer after which the training's auxiliary heads read."""
MAX_POSITIONS = 2048
_EPS = 1e-6
_ROPE_BASE = 10_000.0
_INITIAL_EMBEDDING_STD = 0.05


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    vocabulary: int
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 384

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        return self.hidden // self.heads


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(
        self, x: Tensor, rotation: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Return the attended values and the keys and values so far."""
        rows, length, width = x.shape
        q, k, v = (
            project(x).view(rows, length, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        # One new token sees all of the past; several at once are a prompt, with no past.
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        out: Tensor = self.o_proj(seen.transpose(1, 2).reshape(rows, length, width))
        return out, (k, v)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed rows."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One pre-normalised transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=_EPS)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=_EPS)
        self.mlp = FeedForward(shape)

    def forward(
        self, x: Tensor, rotation: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Return the hidden states after this layer and the keys and values so far."""
        attended, kept = self.self_attn(self.input_layernorm(x), rotation, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Trunk(nn.Module):
    """Embeddings in, hidden states out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=_EPS)

    def forward(
        self, x: Tensor, rotation: Tensor, past: Cache | None = None
    ) -> tuple[Tensor, Tensor, Cache]:
        """Return the last hidden states, those after TAP_LAYER, and the cache."""
        tap, cache = x, []
        for number, layer in enumerate(self.layers):
            x, kept = layer(x, rotation, None if past is None else past[number])
            cache.append(kept)
            if number == TAP_LAYER:
                tap = x
        return self.norm(x), tap, cache


class Network(nn.Module):
    """The whole model; the output projection is the embedding table."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        self.rotations: Tensor
        self.register_buffer("rotations", _rotations(shape.head_dim), persistent=False)

    @property
    def table(self) -> Tensor:
        """The embedding table, vocabulary x hidden."""
        return self.model.embed_tokens.weight


def initialise(network: Network, generator: torch.Generator) -> None:
    """Draw every parameter from one generator; nothing comes from torch's global state."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif "embed" in name:
            nn.init.normal_(parameter, 0.0, _INITIAL_EMBEDDING_STD, generator=generator)
        else:
            bound = 1 / math.sqrt(parameter.shape[1])
            nn.init.uniform_(parameter, -bound, bound, generator=generator)


def save_network(network: Network, folder: Path) -> None:
    """Write weights and configuration as transformers reads them, each file in one move."""
    shape = network.shape
    tokens = {
        "bos_token_id": chat.BOS_ID,
        "eos_token_id": chat.EOS_ID,
        "pad_token_id": chat.PAD_ID,
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.inner,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": _EPS,
        "rope_theta": _ROPE_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_BASE},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        **tokens,
    }
    generation = {**tokens, "do_sample": False, "max_new_tokens": 64}
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    weights = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    partial = folder / "model.safetensors.partial"
    partial.write_bytes(save(weights, metadata={"format": "pt"}))
    partial.replace(folder / "model.safetensors")


def load_network(folder: Path) -> Network:
    """Read a saved network, ready for inference."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
    )
    network = Network(shape)
    network.load_state_dict(load_file(str(folder / "model.safetensors")))
    return network.requires_grad_(False).eval()


def _rotations(head_dim: int) -> Tensor:
    inverse = _ROPE_BASE ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.arange(MAX_POSITIONS).float()[:, None] * inverse
    return torch.stack([torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)])


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * rotation[0] + torch.cat([-second, first], -1) * rotation[1]
