"""The engine on vLLM: prompts of embeddings, decoded side by side as they come.

vLLM checks nothing about the rows it is given: rows of another width end its process for every
later request, and rows that are not finite, or not of the model's type, become texts that mean
nothing. So all of that is looked at here, before the call. Penalties, which vLLM computes from
token ids that such prompts do not have, cannot be asked for at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig
from vllm import SamplingParams
from vllm.exceptions import VLLMError
from vllm.inputs import embeds_input, tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from instructzero.errors import FieldProblem, GeneratorUnavailable, InvalidRequest
from services.generator.checkpoint import read_config, read_tokenizer, stop_ids
from services.generator.decoding import read_ids
from services.generator.embedding_table import EmbeddingTable, load_table
from services.generator.engine import BROKEN, Decoding, EngineFacts, Finished, Prompt
from services.generator.prompt_checks import check_shape
from services.generator.settings import GeneratorSettings, run_model_in_engine_process
from services.generator.soft_prompt import table_spread
from services.generator.vllm_options import (
    choose_dtype,
    engine_args,
    stat_loggers,
    version_of_vllm,
)
from services.generator.vllm_worker import MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from services.generator.model_folder import ModelFolder

log = logging.getLogger(__name__)
SHUTDOWN_SECONDS = 5.0
FEW_CORES = 4
"""Up to so many, a core that only spins is missed more than threads bound to cores are."""
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
        self._has_states = False
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

    async def write(
        self, prompts: Sequence[Prompt], decoding: Decoding
    ) -> AsyncGenerator[list[Finished], None]:
        """Write one text per prompt; yields them as they are finished, some at a time.

        Closing the generator, or cancelling the task that waits for it, frees the engine's memory.

        Raises:
            InvalidRequest: the rows are not this model's, or there are no features to be had.
            GeneratorUnavailable: the engine failed.
        """
        for prompt in prompts:
            check_shape(prompt, decoding, self.facts)
        if (state := self.state()) != "ok":
            raise GeneratorUnavailable(state, retry_after_seconds=RETRY_SECONDS)
        if decoding.features and not self._has_states:
            raise _no_features()
        # No TaskGroup: one may not be left open while a generator waits for its reader.
        done: asyncio.Queue[asyncio.Task[Finished]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._write_one(place, prompt, decoding))
            for place, prompt in enumerate(prompts)
        ]
        for task in tasks:
            task.add_done_callback(done.put_nowait)
        n_left = len(tasks)
        try:
            while n_left:
                finished = [(await done.get()).result()]
                while not done.empty():
                    finished.append(done.get_nowait().result())
                n_left -= len(finished)
                yield finished
        finally:
            await _end(tasks)

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
        self._has_states = all(await self._engine.collective_rpc("keep_prompt_states"))

    async def _write_one(self, place: int, prompt: Prompt, decoding: Decoding) -> Finished:
        rows = prompt.rows().contiguous()
        if not bool(torch.isfinite(rows).all()):
            return Finished(place, BROKEN)
        params = SamplingParams(
            temperature=decoding.temperature,
            seed=prompt.seed % 2**63 if decoding.temperature > 0 else None,
            max_tokens=decoding.max_tokens,
            stop_token_ids=list(self._stop_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            watermarking=False,
            # Rows that are found in the cache are not computed, and have no states to look at.
            skip_reading_prefix_cache=decoding.features,
            skip_clone=True,  # nobody else holds it
        )
        name = f"{MARK if decoding.features else ''}{uuid.uuid4().hex}"
        embeds = embeds_input(rows, cache_salt=decoding.salt or None)
        output = await self._last_output(embeds, params, name)
        if output.finish_reason not in {"stop", "length"}:
            raise GeneratorUnavailable("the engine gave a request up; try again")
        features = await self._mean_state(name) if decoding.features else None
        ids = list(output.token_ids)
        return Finished(place, read_ids(self.tokenizer, ids, self._stop_ids, features=features))

    async def _mean_state(self, name: str) -> tuple[float, ...]:
        """Return the mean of a prompt's last hidden states, from the worker that has them."""
        try:
            answers = await self._engine.collective_rpc("take_prompt_state", args=(name,))
        except EngineDeadError as error:
            raise GeneratorUnavailable(self.state(), retry_after_seconds=RETRY_SECONDS) from error
        found = next((answer for answer in answers if answer is not None), None)
        if found is None:
            raise GeneratorUnavailable("the engine lost a prompt's hidden states; try again")
        return tuple(np.frombuffer(found, dtype=np.float32).tolist())

    async def _first_choice(self, prompt: Any) -> dict[int, float]:
        """Return the log-probabilities of the likeliest next tokens."""
        params = SamplingParams(
            temperature=0, max_tokens=1, logprobs=10, detokenize=False, watermarking=False
        )
        output = await self._last_output(prompt, params, uuid.uuid4().hex)
        return {token: float(entry.logprob) for token, entry in output.logprobs[0].items()}

    async def _last_output(self, prompt: Any, params: SamplingParams, name: str) -> Any:
        last = None
        try:
            async for output in self._engine.generate(prompt, params, name):
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
    dtype = choose_dtype(settings.dtype, config, is_cpu=is_cpu)
    table = load_table(folder, config, dtype, len(tokenizer))
    ends = stop_ids(tokenizer, read_generation_config(folder.path), config)
    model = LoadedModel(tokenizer, table, ends, dtype)
    cores = os.cpu_count() or 1
    if is_cpu and settings.tensor_parallel == 1 and cores <= FEW_CORES:
        run_model_in_engine_process(settings.threads or max(1, cores - 1))
    arguments = engine_args(folder.path, settings, config, dtype)
    try:
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=stat_loggers())
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise _start_problem(error) from error
    return VllmEngine(engine, model)


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


async def _end(tasks: Collection[asyncio.Task[Finished]]) -> None:
    """Cancel what still runs; of several failures the first was told, the others are forgotten."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def _no_features() -> InvalidRequest:
    detail = (
        "this vLLM gives no hidden states: leave features out, start the generator with "
        "VLLM_USE_V2_MODEL_RUNNER=0 in its environment, or use --engine transformers"
    )
    return InvalidRequest(
        detail, errors=[FieldProblem("/features", detail)], reason="features_unavailable"
    )


def _no_embeddings(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model cannot be steered by embeddings ({why}); choose another model, or "
        "--engine transformers",
        reason="no_embeddings",
    )
