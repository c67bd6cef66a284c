"""The demo model's tokenizer and chat format: `<s><|user|>CONTENT<|assistant|>` and an answer.

Every word of the corpus is one token, so that a tiny model need not learn to spell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"
SPECIAL = (BOS, EOS, PAD, USER, ASSISTANT)
BOS_ID, EOS_ID, PAD_ID, USER_ID, ASSISTANT_ID = range(len(SPECIAL))
FIELDS = ("Instruction:", "Input:", "Output:")
EXEMPLAR = "Input: {input}\nOutput: {output}\n"
META_PROMPT = {"id": "demo-1", "before": "", "exemplar": EXEMPLAR, "after": "Instruction:"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    f"{{% if message['role'] == 'assistant' %}}{ASSISTANT}{{{{ message['content'] }}}}{EOS}"
    f"{{% else %}}{USER}{{{{ message['content'] }}}}{{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)
"""System messages are user turns: the model knows no other authority."""
_PIECE = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+")


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE in which every word of the texts is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pieces = sorted({piece for text in texts for piece in _PIECE.findall(text)})
    trainer = trainers.BpeTrainer(
        vocab_size=8192,  # far above what is needed: the words set the size
        min_frequency=1,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_tokens([AddedToken(field, normalized=False) for field in FIELDS])
    return tokenizer


def render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the token ids of a chat up to where the assistant speaks.

    Unlike the Jinja template, a turn marker inside a message stays plain text here.
    """
    ids = [BOS_ID]
    for message in messages:
        content = tokenizer.encode(message["content"], add_special_tokens=False).ids
        if message["role"] == "assistant":
            ids += [ASSISTANT_ID, *content, EOS_ID]
        else:
            ids += [USER_ID, *content]
    return [*ids, ASSISTANT_ID]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what transformers and vLLM need to read the tokenizer, and our meta-prompt."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    for name, value in (("tokenizer_config.json", settings), ("meta_prompt.json", META_PROMPT)):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a saved tokenizer; special tokens inside a text are encoded as plain text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer
