"""The vLLM engine in this process, on families that treat embeddings in their own ways."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from instructzero.contracts import GenerateRequest
from instructzero.errors import GeneratorUnavailable, InvalidRequest
from services.generator import transformers_engine
from services.generator.app import open_engine
from services.generator.engine import BROKEN, Decoding, EngineFacts, Prompt
from services.generator.meta_prompt import CHAT
from services.generator.model_folder import find_model
from services.generator.settings import GeneratorSettings
from services.generator.transformers_engine import TransformersEngine
from services.generator.writing import InstructionWriter
from tests.generator.writing import write
from tests.generator_cluster.cluster import needs_vllm
from tests.generator_cluster.families import save_family
from tests.generator_cluster.likeness import check_likeness

if TYPE_CHECKING:
    from services.generator.vllm_engine import VllmEngine

pytestmark = [needs_vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
GREEDY = Decoding(max_tokens=12, salt="t")


class Twins:
    """One random model in both engines."""

    def __init__(
        self, settings: GeneratorSettings, vllm: VllmEngine, plain: TransformersEngine
    ) -> None:
        self.settings = settings
        self.vllm = vllm
        self.plain = plain

    def prompts(self, n: int, *, length: int = 30) -> list[Prompt]:
        draw = np.random.default_rng(n)
        size, spread = self.vllm.facts.hidden_size, self.vllm.facts.spread
        vocabulary = len(self.vllm.tokenizer)
        return [
            Prompt(
                self.vllm.embed([0]),
                torch.from_numpy(draw.normal(0, spread, (3, size)).astype(np.float32)),
                self.vllm.embed(draw.integers(4, vocabulary, length).tolist()),
                seed=i,
            )
            for i in range(n)
        ]


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["qwen3", "gemma3"])
async def twins(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Twins]:
    folder = save_family(tmp_path_factory.mktemp("models") / "m", request.param)
    settings = GeneratorSettings(model=str(folder), offline=True, engine="vllm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        engine: Any = open_engine(find_model(settings), settings)
        await engine.check()
    plain = transformers_engine.open_engine(find_model(settings), settings)
    yield Twins(settings, engine, plain)
    await plain.aclose()
    await engine.aclose()


async def test_the_rows_are_those_of_the_whole_model(twins: Twins) -> None:
    ids = list(range(len(twins.vllm.tokenizer)))
    assert torch.equal(twins.vllm.embed(ids), twins.plain.embed(ids))
    assert twins.vllm.facts.spread == twins.plain.facts.spread
    assert twins.vllm._stop_ids == twins.plain._stop_ids


async def test_both_engines_write_the_same(twins: Twins) -> None:
    prompts = twins.prompts(50)
    ours = await write(twins.vllm, prompts, GREEDY)
    theirs = await write(twins.plain, prompts, GREEDY)
    assert len({written.text for written in theirs}) > 10
    pairs = [(one.text, other.text) for one, other in zip(theirs, ours, strict=True)]
    check_likeness(twins.plain, prompts, pairs, share=0.95, gap=1e-2)
    for one, other in zip(theirs, ours, strict=True):
        assert one.text != other.text or one == other


async def test_features_are_those_of_the_other_engine_and_leave_the_texts_alone(
    twins: Twins,
) -> None:
    prompts = [*twins.prompts(40), *twins.prompts(3, length=400)]
    asked = Decoding(max_tokens=12, salt="t", features=True)
    await write(twins.vllm, prompts, GREEDY)  # what lies in the cache now has no states to see
    ours = await write(twins.vllm, prompts, asked)
    theirs = await write(twins.plain, prompts, asked)
    for one, other in zip(ours, theirs, strict=True):
        assert one.features is not None
        assert one.features == pytest.approx(other.features, rel=1e-3, abs=1e-3)
    plain = await write(twins.vllm, prompts, GREEDY)
    assert [each.text for each in plain] == [each.text for each in ours]
    assert {each.features for each in plain} == {None}


async def test_texts_come_as_they_are_finished(twins: Twins) -> None:
    sampled = Decoding(max_tokens=400, temperature=1.5)
    parts = [
        [each.written for each in part]
        async for part in twins.vllm.write(twins.prompts(60), sampled)
    ]
    assert len(parts) > 1
    assert sum(map(len, parts)) == 60


async def test_a_reader_that_leaves_frees_the_engine(twins: Twins) -> None:
    prompts = twins.prompts(40)
    parts = twins.vllm.write(prompts, Decoding(max_tokens=900, temperature=1.5))
    await anext(parts)
    await parts.aclose()
    assert not twins.vllm._engine.output_processor.has_unfinished_requests()
    assert await write(twins.vllm, prompts[:1], GREEDY)


async def test_a_seeded_text_depends_on_its_seed_alone(twins: Twins) -> None:
    sampled = Decoding(max_tokens=8, temperature=1.5)
    prompts = twins.prompts(6)
    together = await write(twins.vllm, prompts, sampled)
    assert await write(twins.vllm, prompts[2:3], sampled) == together[2:3]
    assert await write(twins.vllm, prompts, sampled) == together


async def test_many_seeded_prompts_at_once_leave_the_engine_alive(twins: Twins) -> None:
    written = await write(twins.vllm, twins.prompts(300), Decoding(max_tokens=4, temperature=1.0))
    assert len(written) == 300
    assert twins.vllm.state() == "ok"


async def test_after_the_exemplars_a_soft_prompt_reuses_their_blocks_within_a_tenant(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: list[int] = []
    generate = twins.vllm._engine.generate

    async def recorded(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async for output in generate(*arguments, **options):
            yield output
        cached.append(output.num_cached_tokens)

    monkeypatch.setattr(twins.vllm._engine, "generate", recorded)
    exemplars = [{"input": f"w{i}", "output": f"a{i}"} for i in range(40)]

    async def tokens_reused(position: str, tenant: str, point: float) -> int:
        # A writer of its own each time: the rows must be equal because they are, not because they
        # were kept.
        writer = InstructionWriter(
            twins.vllm, find_model(twins.settings), CHAT, cached_prompts=1, max_characters=1_000
        )
        request = {"request_id": "r", "exemplars": exemplars, "points": [[point] * 10]}
        content = {**request, "soft_position": position, "tenant": tenant, "max_tokens": 2}
        (prompt,) = writer.assemble(GenerateRequest.model_validate(content))
        assert len(prompt) > 300
        cached.clear()
        [_ async for _ in writer.stream(GenerateRequest.model_validate(content))]
        return cached[0]

    assert await tokens_reused("suffix", "one", 0.1) == 0
    assert await tokens_reused("suffix", "one", -0.7) >= 128
    assert await tokens_reused("suffix", "two", 0.3) == 0
    assert await tokens_reused("prefix", "one", 0.1) == 0
    assert await tokens_reused("prefix", "one", -0.7) == 0


async def test_rows_that_would_poison_the_engine_never_reach_it(twins: Twins) -> None:
    (good,) = twins.prompts(1)
    before = await write(twins.vllm, [good], GREEDY)
    size = twins.vllm.facts.hidden_size
    bad = [
        (Prompt(good.head, torch.zeros(3, size + 1), good.tail), "shape"),
        (Prompt(good.head, torch.zeros(3 * size), good.tail), "shape"),
        (Prompt(good.head, torch.zeros(1, 3, size), good.tail), "shape"),
        (Prompt(torch.zeros(1, size // 2), good.soft, good.tail), "shape"),
        (Prompt(good.head, torch.zeros(3, size, dtype=torch.int64), good.tail), "int64"),
        (Prompt(good.head, good.soft, good.tail.double()), "float64"),
        (Prompt(good.head[:0], good.soft[:0], good.tail[:0]), "no rows"),
        (Prompt(good.head, good.soft, good.tail.repeat(600, 1)), "holds"),
    ]
    for prompt, word in bad:
        with pytest.raises(InvalidRequest, match=word):
            await write(twins.vllm, [good, prompt], GREEDY)
    with pytest.raises(InvalidRequest, match="at least one token"):
        await write(twins.vllm, [good], Decoding(max_tokens=0))
    for value in (float("nan"), float("inf"), -float("inf")):
        soft = good.soft.clone()
        soft[1, 2] = value
        spoiled = Prompt(good.head, soft, good.tail)
        assert await write(twins.vllm, [spoiled, good], GREEDY) == [BROKEN, *before]
    assert twins.vllm.state() == "ok"


async def test_an_engine_that_does_not_start_says_what_to_change(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "m", "qwen3")
    settings = GeneratorSettings(
        model=str(folder), offline=True, engine="vllm", context_tokens=100_000
    )
    with pytest.raises(InvalidRequest, match="IZ_GENERATOR_CONTEXT_TOKENS") as caught:
        open_engine(find_model(settings), settings)
    assert caught.value.reason == "engine_not_started"


async def test_a_prompt_that_just_fits_is_let_through() -> None:
    from services.generator.prompt_checks import check_shape

    facts = EngineFacts("vllm", "0", "float32", "cpu", 4, 1.0, context_tokens=20)
    rows = Prompt(torch.zeros(5, 4), torch.zeros(3, 4), torch.zeros(4, 4))
    check_shape(rows, Decoding(max_tokens=8), facts)
    with pytest.raises(InvalidRequest) as caught:
        check_shape(rows, Decoding(max_tokens=9), facts)
    assert caught.value.reason == "prompt_too_long"


async def test_an_engine_whose_process_died_says_so(twins: Twins) -> None:
    """Last of a family: it ends the engine."""
    import psutil

    prompts = twins.prompts(1)
    for process in psutil.Process().children(recursive=True):
        if "VLLM::EngineCore" in " ".join(process.cmdline()):
            process.kill()
            process.wait()
    async with asyncio.timeout(30):
        while twins.vllm.state() == "ok":  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.01)
    assert "process ended" in twins.vllm.state()
    with pytest.raises(GeneratorUnavailable) as caught:
        await write(twins.vllm, prompts, GREEDY)
    assert caught.value.retry_after_seconds
