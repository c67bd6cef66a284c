"""The engine on transformers: CPU or CUDA, prompts of embeddings, decoded in batches."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from instructzero.errors import GeneratorUnavailable, InvalidRequest
from services.generator import meters
from services.generator.checkpoint import Checkpoint, load_checkpoint, stop_ids, text_config
from services.generator.decoding import Choice, Interrupt, PromptStates, read_ids
from services.generator.engine import BROKEN, Decoding, EngineFacts, Finished, Prompt, Written
from services.generator.soft_prompt import table_spread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from services.generator.model_folder import ModelFolder
    from services.generator.settings import GeneratorSettings

log = logging.getLogger(__name__)
CHUNK = 4_096
BATCH_SIZE = 32
UNBOUNDED = 1_000_000
"""Tokenizers say a number beyond this when they know no length."""


class Interrupted(Exception):
    """Nobody waits for the text any more."""


class Batch(NamedTuple):
    """Prompts side by side, padded on the left: every row's last position is its last token."""

    embeddings: Tensor
    mask: Tensor


class TransformersEngine:
    """Decodes in one thread of its own, so that the event loop only waits."""

    def __init__(self, checkpoint: Checkpoint, *, max_batch_size: int) -> None:
        """Take over a loaded model.

        Raises:
            InvalidRequest: the model does not read embeddings as it reads tokens.
        """
        self._model = checkpoint.model
        self._device = checkpoint.device
        self.tokenizer: PreTrainedTokenizerBase = checkpoint.tokenizer
        self._max_batch_size = max_batch_size
        self._decoder = self._model.get_decoder()
        self._stop_ids = stop_ids(
            checkpoint.tokenizer, self._model.generation_config, text_config(self._model)
        )
        # A checkpoint's own decoding defaults (a repetition penalty, say) would change the texts
        # behind our back, and with embeddings some of them silently do nothing.
        self._model.generation_config = GenerationConfig()
        self.facts = self._facts(checkpoint.dtype)
        self._probe()
        self._failure: str | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generator-engine")

    async def check(self) -> None:
        """Return at once: everything was checked while the model was loaded."""

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return the rows that the model reads for token ids.

        The embedding module itself scales them where a model does (Gemma), and a model that scales
        later (Granite) does so for rows of ours too.
        """
        with torch.inference_mode():
            tokens = torch.tensor(list(ids), dtype=torch.long, device=self._device)
            rows: Tensor = self._model.get_input_embeddings()(tokens)
        return rows

    async def write(
        self, prompts: Sequence[Prompt], decoding: Decoding
    ) -> AsyncGenerator[list[Finished], None]:
        """Write one text per prompt; yields each batch when it is finished.

        Raises:
            GeneratorUnavailable: the engine failed, or has no memory for one prompt.
        """
        if self._failure is not None:
            raise GeneratorUnavailable(self._failure)
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        start, size = 0, self._max_batch_size
        try:
            while start < len(prompts):
                part = prompts[start : start + size]
                written = await loop.run_in_executor(
                    self._worker, self._attempt, part, decoding, stop
                )
                if written is not None:
                    yield [Finished(start + i, each) for i, each in enumerate(written)]
                    start += len(part)
                elif len(part) > 1:
                    size = len(part) // 2
                    log.warning("out of memory: going on with %d prompts at a time", size)
                else:
                    raise self._out_of_memory(len(part[0]))
        finally:
            stop.set()

    def state(self) -> str:
        """Return `ok`, or what is wrong."""
        return self._failure or "ok"

    async def aclose(self) -> None:
        """Wait for the work in hand and let the model go."""
        self._failure = "the engine is closed"
        await asyncio.to_thread(self._worker.shutdown, wait=True)
        del self._model, self._decoder
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _out_of_memory(self, n_tokens: int) -> GeneratorUnavailable:
        return GeneratorUnavailable(
            f"a prompt of {n_tokens} tokens does not fit into the memory of "
            f"{self.facts.device}: use fewer or shorter exemplars, a smaller max_tokens, "
            "or a larger device",
            reason="out_of_memory",
        )

    def _attempt(
        self, prompts: Sequence[Prompt], decoding: Decoding, stop: threading.Event
    ) -> list[Written] | None:
        """Decode one batch; None if there was no memory for it."""
        if stop.is_set():
            raise Interrupted
        try:
            return self._decode(prompts, decoding, stop)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                return None
            if isinstance(error, torch.AcceleratorError):
                # The device's context is lost; only a new process gets another.
                self._failure = "the device failed; the generator must be restarted"
            log.exception("the engine failed")
            raise GeneratorUnavailable(
                f"the engine failed ({type(error).__name__}); the generator's log says why"
            ) from error

    def _decode(
        self, prompts: Sequence[Prompt], decoding: Decoding, stop: threading.Event
    ) -> list[Written]:
        meters.BATCH.observe(len(prompts))
        batch = pad_left([prompt.rows() for prompt in prompts])
        stop_id = self._stop_ids[0] if self._stop_ids else 0
        choice = Choice([prompt.seed for prompt in prompts], decoding.temperature, stop_id)
        states = PromptStates(batch.mask)
        with torch.inference_mode(), ExitStack() as stack:
            if decoding.features:
                stack.callback(self._decoder.register_forward_hook(states).remove)
            ids = self._model.generate(
                inputs_embeds=batch.embeddings,
                attention_mask=batch.mask,
                generation_config=GenerationConfig(
                    max_new_tokens=decoding.max_tokens,
                    do_sample=False,
                    use_cache=True,
                    eos_token_id=list(self._stop_ids) or None,
                    pad_token_id=stop_id,
                ),
                logits_processor=LogitsProcessorList([choice]),
                stopping_criteria=StoppingCriteriaList([Interrupt(stop)]),
            )
        if stop.is_set():
            raise Interrupted
        means = None if states.mean is None else states.mean.cpu().tolist()
        return [
            BROKEN
            if is_broken
            else read_ids(
                self.tokenizer,
                row,
                self._stop_ids,
                features=tuple(means[i]) if means is not None else None,
            )
            for i, (row, is_broken) in enumerate(
                zip(ids.tolist(), choice.broken.tolist(), strict=True)
            )
        ]

    def _facts(self, dtype: str) -> EngineFacts:
        config = text_config(self._model)
        lengths = (
            getattr(config, "max_position_embeddings", None),
            getattr(config, "n_positions", None),
            int(self.tokenizer.model_max_length),
        )
        context = next((n for n in lengths if isinstance(n, int) and 0 < n < UNBOUNDED), None)
        return EngineFacts(
            name="transformers",
            version=transformers.__version__,
            dtype=dtype,
            device=str(self._device),
            hidden_size=self.embed([0]).shape[1],
            spread=table_spread(self._table()),
            context_tokens=context,
        )

    def _table(self) -> Iterator[Tensor]:
        """Yield the embedding rows of the tokenizer's tokens; tables are padded beyond them."""
        n_rows = min(len(self.tokenizer), self._model.get_input_embeddings().weight.shape[0])
        for start in range(0, n_rows, CHUNK):
            yield self.embed(range(start, min(start + CHUNK, n_rows)))

    def _probe(self) -> None:
        """Check that rows of our own work, and that a token's row means what the token means."""
        ids = torch.arange(min(6, len(self.tokenizer)), device=self._device)[None]
        rows = self.embed(ids[0].tolist())[None]
        noise = torch.linspace(-1.7, 1.7, rows.numel(), device=self._device).reshape(rows.shape)
        soft = (noise * self.facts.spread).to(rows.dtype)
        try:
            with torch.inference_mode():
                by_ids = self._model(input_ids=ids).logits.float()
                by_rows = self._model(inputs_embeds=rows).logits.float()
                by_soft = self._model(inputs_embeds=soft).logits
        except (RuntimeError, ValueError, TypeError) as error:
            raise _no_embeddings(f"it refuses them: {type(error).__name__}") from error
        scale = float(by_ids.std()) or 1.0
        if not bool(torch.isfinite(by_soft).all() and torch.isfinite(by_ids).all()):
            raise _no_embeddings(
                f"its numbers overflow in {self.facts.dtype}; set IZ_GENERATOR_DTYPE to float32 "
                "or bfloat16"
            )
        if float((by_ids - by_rows).abs().max()) > 0.05 * scale:
            raise _no_embeddings("a token's embedding does not stand for the token")


def open_engine(folder: ModelFolder, settings: GeneratorSettings) -> TransformersEngine:
    """Load a model.

    Raises:
        InvalidRequest: it cannot be used; says what to do.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    checkpoint = load_checkpoint(folder, settings)
    return TransformersEngine(checkpoint, max_batch_size=settings.max_batch_size or BATCH_SIZE)


def pad_left(prompts: Sequence[Tensor]) -> Batch:
    """Put prompts of different lengths side by side, each ending at the last position."""
    width = max(len(rows) for rows in prompts)
    first = prompts[0]
    embeddings = first.new_zeros((len(prompts), width, first.shape[1]))
    mask = torch.zeros((len(prompts), width), dtype=torch.long, device=first.device)
    for i, rows in enumerate(prompts):
        embeddings[i, width - len(rows) :] = rows
        mask[i, width - len(rows) :] = 1
    return Batch(embeddings, mask)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On a CPU, PyTorch says so in words only.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _no_embeddings(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model cannot be steered by embeddings ({why}); choose another model",
        reason="no_embeddings",
    )
