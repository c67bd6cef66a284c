"""From a request to instructions: project, assemble, write, clean, guard."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from instructzero.contracts import (
    MAX_TEXT,
    GeneratedInstruction,
    GenerateRequest,
    InstructionLine,
    ProjectionSpec,
)
from instructzero.errors import FieldProblem, InvalidRequest
from services.generator import meters
from services.generator.chat import ChatFormat, SoftPosition
from services.generator.cleaning import clean
from services.generator.engine import Decoding, Engine, Finished, Prompt, Written
from services.generator.guards import reject
from services.generator.meta_prompt import MetaPrompt, UserTurn
from services.generator.model_folder import ModelFolder
from services.generator.soft_prompt import Projection, Space, draw_seed, fingerprint

CACHED_PROJECTIONS = 4


class EmbeddedHalves(NamedTuple):
    """Embedding rows before and after the soft prompt."""

    head: Tensor
    tail: Tensor


class InstructionWriter:
    """One model's way from latent points to instructions; the same on every engine."""

    def __init__(
        self,
        engine: Engine,
        folder: ModelFolder,
        meta_prompt: MetaPrompt,
        *,
        cached_prompts: int,
        max_characters: int,
    ) -> None:
        """Join an engine with the texts around the soft prompt.

        Raises:
            InvalidRequest: the model's chat template cannot be used.
        """
        self.engine = engine
        self._meta_prompt = meta_prompt
        self._max_characters = max_characters
        self._chat = ChatFormat(engine.tokenizer)
        self._space = Space(
            model=folder.name,
            revision=folder.revision,
            weights=folder.weights,
            engine=engine.facts.name,
            engine_version=engine.facts.version,
            dtype=engine.facts.dtype,
            meta_prompt=meta_prompt.id,
            frame=self._chat.describe(meta_prompt),
        )
        # Exemplar rows are computed once per text: bit-identical rows are also what a prefix cache
        # needs to find them again.
        self._halves = lru_cache(maxsize=cached_prompts)(self._embed_halves)
        self._projection = lru_cache(maxsize=CACHED_PROJECTIONS)(self._draw_projection)
        # Tokenizers are not safe to share between threads, hence one thread.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generator-prompts")

    async def stream(
        self, request: GenerateRequest
    ) -> AsyncGenerator[tuple[InstructionLine, ...], None]:
        """Yield the instructions as they are finished; closing the generator ends the work.

        Raises:
            InvalidRequest: the prompt is longer than the model reads.
            GeneratorUnavailable: the engine failed.
        """
        loop = asyncio.get_running_loop()
        prompts = await loop.run_in_executor(self._worker, self.assemble, request)
        decoding = Decoding(
            request.max_tokens, request.temperature, request.features, salt=request.tenant
        )
        async with aclosing(self.engine.write(prompts, decoding)) as parts:
            async for part in parts:
                yield await loop.run_in_executor(self._worker, self._finish, request, part)

    def assemble(self, request: GenerateRequest) -> list[Prompt]:
        """Return one prompt per point.

        Raises:
            InvalidRequest: the prompt is longer than the model reads.
        """
        turn = self._meta_prompt.render(request.exemplars)
        n_hits = self._halves.cache_info().hits
        head, tail = self._halves(turn, request.soft_position)
        is_hit = self._halves.cache_info().hits > n_hits
        meters.PROMPT_CACHE.labels("hit" if is_hit else "miss").inc()
        self._check_length(len(head) + request.projection.n_tokens + len(tail), request)
        soft_prompts = self._projection(request.projection).soft_prompts(request.points)
        repeats: Counter[Sequence[float]] = Counter()
        prompts = []
        for point, soft in zip(request.points, soft_prompts, strict=True):
            seed = draw_seed(request.seed, point, repeats[point])
            repeats[point] += 1
            prompts.append(Prompt(head, torch.from_numpy(soft), tail, seed))
        return prompts

    async def aclose(self) -> None:
        """Close the engine."""
        await self.engine.aclose()
        self._worker.shutdown(wait=False)
        self._halves.cache_clear()

    def _embed_halves(self, turn: UserTurn, position: SoftPosition) -> EmbeddedHalves:
        halves = self._chat.halves(turn, position)
        return EmbeddedHalves(self.engine.embed(halves.head), self.engine.embed(halves.tail))

    def _draw_projection(self, spec: ProjectionSpec) -> Projection:
        facts = self.engine.facts
        return Projection.draw(spec, hidden_size=facts.hidden_size, spread=facts.spread)

    def _check_length(self, n_tokens: int, request: GenerateRequest) -> None:
        context = self.engine.facts.context_tokens
        if context is not None and n_tokens + request.max_tokens > context:
            detail = (
                f"the prompt has {n_tokens} tokens and {request.max_tokens} more may be written, "
                f"but the model reads at most {context}: give fewer or shorter exemplars, or a "
                "smaller max_tokens"
            )
            raise InvalidRequest(
                detail, errors=[FieldProblem("/exemplars", detail)], reason="prompt_too_long"
            )

    def _finish(
        self, request: GenerateRequest, finished: Sequence[Finished]
    ) -> tuple[InstructionLine, ...]:
        space = fingerprint(self._space, request.projection, request.soft_position)
        return tuple(
            InstructionLine(
                point=place, fingerprint=space, instruction=self._instruction(request, written)
            )
            for place, written in finished
        )

    def _instruction(self, request: GenerateRequest, written: Written) -> GeneratedInstruction:
        text = clean(written.text)
        if written.finish_reason == "non_finite":
            rejected: str | None = "non_finite"
        else:
            rejected = reject(text, request.exemplars, max_characters=self._max_characters)
        return GeneratedInstruction(
            text=text[:MAX_TEXT],
            tokens=written.tokens,
            finish_reason=written.finish_reason,
            features=written.features,
            rejected=rejected,
        )
