"""Reads a checkpoint with transformers: no code from the model's files, no weights made up.

What transformers and the libraries below it raise on a file that they cannot read has no common
class; here, at the edge, any of it becomes a message that says what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from instructzero.errors import InvalidRequest
from services.generator.chat import ChatFormat
from services.generator.model_folder import ModelFolder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from services.generator.settings import GeneratorSettings


class Checkpoint(NamedTuple):
    """A model with its tokenizer, ready to use."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: str


def load_checkpoint(folder: ModelFolder, settings: GeneratorSettings) -> Checkpoint:
    """Load a causal language model and its tokenizer.

    Raises:
        InvalidRequest: it is none, cannot be read, or does not fit; says what to do.
    """
    device = choose_device(settings.device)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    dtype = _choose_dtype(settings.dtype, device, config)
    model = _read_model(folder, dtype)
    try:
        model = model.to(device)
    except torch.OutOfMemoryError as error:
        raise _problem(
            f"the model does not fit into the memory of {device}: use a smaller one, or "
            "set IZ_GENERATOR_DTYPE=bfloat16",
            "model_too_large",
        ) from error
    model.eval()
    return Checkpoint(model, tokenizer, device, str(model.dtype).removeprefix("torch."))


def choose_device(wanted: str) -> torch.device:
    """Return the device that the settings ask for.

    Raises:
        InvalidRequest: there is no such device here.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise _problem(
            "PyTorch finds no CUDA device here; set IZ_GENERATOR_DEVICE=cpu, or install the CUDA "
            "build of PyTorch and a driver",
            "no_such_device",
        )
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")


def read_config(folder: ModelFolder) -> PretrainedConfig:
    """Read the model's configuration and check that it is a causal language model's.

    Raises:
        InvalidRequest: it is not.
    """
    try:
        config = AutoConfig.from_pretrained(
            folder.path, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise _problem(
            "the model's config.json cannot be used: it is damaged, its kind needs a newer "
            "transformers, or it needs code of its own, which this service does not run "
            f"({type(error).__name__})"
        ) from error
    causal = _causal_classes()
    architectures = tuple(config.architectures or ())
    if config.is_encoder_decoder or not (set(architectures) & causal or not architectures):
        raise _problem(
            f"the model is {', '.join(architectures) or 'an encoder-decoder'}, not a causal "
            "language model; choose one that continues text (such as Qwen, Llama or Gemma)",
            "not_causal",
        )
    return config


def read_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerBase:
    """Read the model's tokenizer.

    Raises:
        InvalidRequest: there is none that can be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder.path, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise _problem(
            "the model's tokenizer cannot be read; save it beside the weights as tokenizer.json "
            f"with tokenizer.save_pretrained(...) ({type(error).__name__})",
            "tokenizer_missing",
        ) from error
    if len(tokenizer) == 0:
        raise _problem("the model's tokenizer is empty; save the right one", "tokenizer_missing")
    return tokenizer


def stop_ids(tokenizer: PreTrainedTokenizerBase, *configs: object) -> tuple[int, ...]:
    """Return every token that ends a text: the configs', the tokenizer's, the template's."""
    found: list[int] = []
    for config in configs:
        named = getattr(config, "eos_token_id", None)
        found += [named] if isinstance(named, int) else list(named or ())
    return tuple(dict.fromkeys((*found, *ChatFormat(tokenizer).stop_ids())))


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """Return the part of a configuration that describes the language model."""
    return model.config.get_text_config(decoder=True)


def _causal_classes() -> set[str]:
    names: set[str] = set()
    for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        names |= {value} if isinstance(value, str) else set(value)
    return names


def _choose_dtype(wanted: str, device: torch.device, config: PretrainedConfig) -> torch.dtype | str:
    if wanted != "auto":
        chosen: torch.dtype = getattr(torch, wanted)
        return chosen
    if device.type == "cpu":
        return torch.float32  # narrower types round so much that a text depends on its batch
    return "auto" if config.dtype is not None else torch.bfloat16


def _read_model(folder: ModelFolder, dtype: torch.dtype | str) -> PreTrainedModel:
    disable_progress_bar()  # it would draw over the caller's own output
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder.path,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise _problem(
            "the model's weights cannot be loaded: a file is damaged or missing, or the format "
            f"(a quantised one, say) needs a package that is not installed ({_first_line(error)})"
        ) from error
    missing = _names(loaded, "missing_keys") + _names(loaded, "mismatched_keys")
    if missing:
        raise _problem(
            f"the weights lack {len(missing)} of the model's tensors ({missing[0]} is one), and "
            "would be filled with noise; the checkpoint is incomplete or of another kind of model",
            "incomplete_weights",
        )
    return model


def _names(loaded: dict[str, Any], kind: str) -> list[str]:
    return sorted(str(name) for name in loaded.get(kind) or ())


def _first_line(error: BaseException) -> str:
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
    )


def _problem(detail: str, reason: str = "invalid_model") -> InvalidRequest:
    return InvalidRequest(detail, reason=reason)
