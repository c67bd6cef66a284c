"""Tiny models with random weights, one per family that treats embeddings in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{{ message['content'] | trim }}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "gemma": ("GemmaConfig", {}),
    "gemma2": ("Gemma2Config", {"sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {}),
    "mistral": ("MistralConfig", {"sliding_window": 16, "tie_word_embeddings": True}),
    "granite": ("GraniteConfig", {"embedding_multiplier": 12.0}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
}


TEXT = """Write the opposite of each word and keep its form. Name the animals in this list, sort
them by size, and answer with the largest one only. Translate every sentence into German, French or
Spanish. Say whether a review is positive or negative. Count what is shown; add both numbers. Give
the first letter, the last letter, the plural, a rhyme, a synonym, the past tense of a verb. Put the
statement into formal language. Input: sane Output: insane Instruction: small large hot cold"""


def make_tokenizer(*, is_chat: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer in which most tokens are words, with four chat marks."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        TEXT.split("\n"),
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[2:],
    )
    if is_chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_model(folder: Path, family: str, **changes: Any) -> Path:
    """Save a tiny random model with its tokenizer."""
    tokenizer = make_tokenizer(is_chat=family != "gpt2")
    name, own = FAMILIES[family]
    sizes = {**SMALL, **own, **changes, "vocab_size": len(tokenizer)}
    config = getattr(transformers, name)(**sizes)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
