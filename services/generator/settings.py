"""Settings of the generator (IZ_GENERATOR_*), and the one place where it reads the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from instructzero.contracts import MAX_TEXT, Name
from services.settings import ServiceSettings

DEFAULT = "default"
"""Every generator also answers to this name."""


class GeneratorSettings(ServiceSettings):
    """Which open model writes instructions, and how much of the machine it may take."""

    model_config = SettingsConfigDict(env_prefix="IZ_GENERATOR_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(8001, ge=0, le=65_535)
    token: SecretStr | None = Field(
        None, description="bearer token that callers must send; needed off loopback"
    )

    model: str | None = Field(None, description="Hugging Face id, or a folder with a checkpoint")
    revision: str | None = Field(None, description="branch, tag or commit of a Hugging Face id")
    served_name: Name | None = Field(
        None, description="what requests call the model, beside `default`; its id if not set"
    )
    offline: bool = Field(False, description="use what is on disk; never ask the model hub")
    hub_url: str | None = Field(None, description="a mirror of the model hub")
    hub_cache: Path | None = Field(
        None, description="where fetched models are kept; Hugging Face's own place if not set"
    )
    meta_prompt: Path | None = Field(
        None, description="a meta-prompt file that replaces the model's own"
    )

    engine: Literal["transformers", "vllm"] = "transformers"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, the checkpoint's own type on a GPU"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; PyTorch's or vLLM's choice if not set"
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="prompts decoded side by side; if not set, 32 with transformers, 256 with vLLM",
    )
    cached_prompts: int = Field(
        256, ge=1, description="exemplar texts whose embeddings are kept in memory"
    )

    context_tokens: int | None = Field(
        None, ge=64, description="tokens read and written together (vLLM); what fits if not set"
    )
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="GPUs that share one copy of the model (vLLM)"
    )
    gpu_memory_share: float = Field(
        0.9, gt=0, lt=1, description="of each GPU's memory, for weights and cache (vLLM)"
    )
    cpu_cache_gib: float = Field(
        1.0, gt=0, description="memory for keys and values on a CPU, in GiB (vLLM)"
    )

    max_characters: int = Field(
        1_000, ge=1, le=MAX_TEXT, description="a longer instruction is rejected as too_long"
    )
    max_waiting: int = Field(64, ge=1, description="requests in hand before 429 is answered")
    deadline_seconds: float = Field(
        600.0, gt=0, le=3600, description="for requests that set none themselves"
    )
    drain_seconds: float = Field(60.0, gt=0)


def served_name(model: str) -> str:
    """Return the name for a model that was given none: its id, or its folder's name."""
    name = model if model.count("/") == 1 and model[0].isalnum() else re.split(r"[/\\]", model)[-1]
    return re.sub(r"[^A-Za-z0-9._/:-]", "-", name).lstrip("._/:-")[:100] or DEFAULT


def send_no_usage_reports() -> None:
    """Tell Ray and vLLM, which read the environment themselves, not to report their use."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("VLLM_NO_USAGE_STATS", "1")):
        os.environ.setdefault(name, value)  # noqa: TID251 - this file is where it may be touched


def give_workers_full_priority() -> None:
    """Tell a Ray that is ours alone not to be nice: to write is what it is there for."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # noqa: TID251


def run_model_in_engine_process(threads: int) -> None:
    """Tell vLLM, which reads the environment itself, to start no worker beside its engine.

    On a CPU the engine would spin while it waits for a worker of its own. The process is spawned,
    because threads of PyTorch that have worked do not survive a fork.
    """
    for name, value in (
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),
        ("OMP_NUM_THREADS", str(threads)),
    ):
        os.environ[name] = value  # noqa: TID251
