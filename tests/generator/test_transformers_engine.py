from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from instructzero.errors import GeneratorUnavailable
from services.generator.engine import Decoding, Prompt, Written
from services.generator.soft_prompt import table_spread
from services.generator.transformers_engine import TransformersEngine, pad_left
from tests.generator.models import FAMILIES
from tests.generator.writing import write

TEXTS = (
    "Input: sane Output: insane Instruction:",
    "Name the largest of the animals",
    "Translate every sentence into German, French or Spanish. Say whether a review is positive.",
)
GREEDY = Decoding(max_tokens=10)
EngineOf = Callable[[str], TransformersEngine]


@pytest.fixture(params=sorted(FAMILIES))
def engine(request: pytest.FixtureRequest, make_engine: EngineOf) -> TransformersEngine:
    return make_engine(request.param)


@pytest.fixture
def llama(make_engine: EngineOf) -> TransformersEngine:
    return make_engine("llama")


def ids_of(engine: TransformersEngine, text: str) -> list[int]:
    return list(engine.tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_of(
    engine: TransformersEngine, text: str, soft: Sequence[Sequence[float]] = (), seed: int = 0
) -> Prompt:
    rows = torch.tensor(soft, dtype=torch.float32).reshape(len(soft), engine.facts.hidden_size)
    return Prompt(engine.embed([0]), rows, engine.embed(ids_of(engine, text)), seed)


def noise(engine: TransformersEngine, n: int, seed: int) -> list[list[float]]:
    drawn = np.random.default_rng(seed).normal(
        0, engine.facts.spread, (n, engine.facts.hidden_size)
    )
    return drawn.tolist()


def soft_prompts(engine: TransformersEngine, n: int, **fields: Any) -> list[Prompt]:
    return [prompt_of(engine, TEXTS[0], noise(engine, 3, i), **fields) for i in range(n)]


def greedy_by_ids(engine: TransformersEngine, ids: list[int], max_tokens: int) -> list[int]:
    """Decode token by token without a cache, padding or embeddings: slow and plain."""
    written: list[int] = []
    with torch.inference_mode():
        for _ in range(max_tokens):
            logits = engine._model(input_ids=torch.tensor([ids + written])).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] in engine._stop_ids:
                return written[:-1]
    return written


async def test_without_soft_tokens_a_prompt_of_embeddings_is_read_like_its_tokens(engine):
    for text in TEXTS:
        prompt = prompt_of(engine, text)
        (written,) = await write(engine, [prompt], GREEDY)
        ids = greedy_by_ids(engine, [0, *ids_of(engine, text)], GREEDY.max_tokens)
        assert written.text == engine.tokenizer.decode(ids, skip_special_tokens=True)
        assert written.tokens == len(ids)


def test_a_forward_pass_on_rows_equals_one_on_tokens(engine):
    ids = torch.tensor([[0, *ids_of(engine, TEXTS[2])]])
    with torch.inference_mode():
        by_ids = engine._model(input_ids=ids).logits
        by_rows = engine._model(inputs_embeds=engine.embed(ids[0].tolist())[None]).logits
    torch.testing.assert_close(by_rows, by_ids, rtol=1e-5, atol=1e-5)


async def test_prompts_of_different_lengths_side_by_side_write_what_each_writes_alone(engine):
    prompts = [prompt_of(engine, text, noise(engine, 2, i)) for i, text in enumerate(TEXTS)]
    assert len({len(prompt) for prompt in prompts}) == len(TEXTS)
    together = await write(engine, prompts, GREEDY)
    assert together == [(await write(engine, [prompt], GREEDY))[0] for prompt in prompts]


def test_a_padded_row_has_the_logits_of_the_row_alone(engine):
    rows = [prompt_of(engine, text, noise(engine, 2, 5)).rows() for text in TEXTS]
    batch = pad_left(rows)
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        padded = engine._model(
            inputs_embeds=batch.embeddings, attention_mask=batch.mask, position_ids=positions
        ).logits[:, -1]
        alone = [engine._model(inputs_embeds=row[None]).logits[0, -1] for row in rows]
    torch.testing.assert_close(padded, torch.stack(alone), rtol=1e-3, atol=1e-3)


async def test_a_point_writes_the_same_alone_and_in_any_batch(llama):
    prompts = soft_prompts(llama, 11)
    together = await write(llama, prompts, GREEDY)
    alone = [(await write(llama, [prompt], GREEDY))[0] for prompt in prompts]
    backwards = (await write(llama, prompts[::-1], GREEDY))[::-1]
    assert sum(a.text == b.text for a, b in zip(together, alone, strict=True)) >= 10
    assert sum(a.text == b.text for a, b in zip(together, backwards, strict=True)) >= 10
    assert together == await write(llama, prompts, GREEDY)
    assert len({written.text for written in together}) > 3


def test_the_soft_prompt_changes_what_comes_next(engine):
    with torch.inference_mode():
        logits = [
            engine._model(inputs_embeds=prompt.rows()[None]).logits[0, -1]
            for prompt in soft_prompts(engine, 2)
        ]
    assert float((logits[0] - logits[1]).abs().max()) > 0.01 * float(logits[0].std())


async def test_sampling_follows_the_seed_of_each_row_alone(llama):
    sampled = Decoding(max_tokens=10, temperature=1.5)
    prompts = [prompt_of(llama, TEXTS[0], noise(llama, 3, 0), seed=seed) for seed in range(6)]
    before = torch.random.get_rng_state()
    together = await write(llama, prompts, sampled)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len({written.text for written in together}) >= 5
    assert [w.text for w in await write(llama, prompts[3:4], sampled)] == [together[3].text]
    assert await write(llama, prompts, sampled) == together


async def test_a_low_temperature_is_nearly_greedy_and_draws_follow_the_probabilities(llama):
    prompt = prompt_of(llama, TEXTS[0])
    cold = Decoding(max_tokens=10, temperature=1e-4)
    assert await write(llama, [prompt], cold) == await write(llama, [prompt], GREEDY)
    with torch.inference_mode():
        scores = llama._model(inputs_embeds=prompt.rows()[None]).logits[0, -1]
    likely = int(scores.argmax())
    share = float(torch.softmax(scores.double() / 2, -1)[likely])
    drawn = await write(
        llama, [prompt_of(llama, TEXTS[0], seed=seed) for seed in range(400)], Decoding(1, 2.0)
    )
    first = llama.tokenizer.decode([likely], skip_special_tokens=True)
    found = sum(written.text == first for written in drawn) / len(drawn)
    assert abs(found - share) < 4 * (share * (1 - share) / len(drawn)) ** 0.5 + 1e-9


async def test_tokens_and_the_reason_of_the_end_are_reported(llama):
    stops = [w for w in await write(llama, soft_prompts(llama, 8), Decoding(3, 3.0))]
    assert all(w.tokens == 3 for w in stops if w.finish_reason == "length")
    with biased(llama, token=1, by=1e4):
        (ended,) = await write(llama, soft_prompts(llama, 1), GREEDY)
    assert ended == Written("", 0, "stop")


async def test_features_are_the_mean_of_the_prompts_last_hidden_states(engine):
    prompts = [prompt_of(engine, text, noise(engine, 2, i)) for i, text in enumerate(TEXTS)]
    together = await write(engine, prompts, Decoding(2, features=True))
    for prompt, written in zip(prompts, together, strict=True):
        with torch.inference_mode():
            states = engine._model.base_model(inputs_embeds=prompt.rows()[None]).last_hidden_state
        torch.testing.assert_close(
            torch.tensor(written.features), states[0].mean(0), rtol=1e-3, atol=1e-3
        )
    assert (await write(engine, prompts, Decoding(2)))[0].features is None


def test_the_spread_is_that_of_the_rows_the_model_reads(make_engine):
    for family in ("llama", "gemma"):
        engine = make_engine(family)
        weight = engine._model.get_input_embeddings().weight[: len(engine.tokenizer)].detach()
        factor = engine.facts.hidden_size**0.5 if family == "gemma" else 1.0
        assert engine.facts.spread == pytest.approx(factor * table_spread([weight]), rel=1e-4)


async def test_prompts_are_decoded_so_many_at_a_time(llama):
    with forward_passes(llama) as sizes:
        await write(llama, soft_prompts(llama, 10), Decoding(2))
    assert {size for size, _ in sizes} == {4, 2}


async def test_out_of_memory_halves_the_batch_and_writes_the_same(llama):
    prompts = soft_prompts(llama, 7)
    wanted = await write(llama, prompts, GREEDY)
    with forward_passes(llama, most=1) as sizes:
        assert [w.text for w in await write(llama, prompts, GREEDY)] == [w.text for w in wanted]
    assert max(size for size, _ in sizes) == 4
    assert await write(llama, prompts, GREEDY) == wanted


async def test_a_prompt_that_fits_no_memory_is_a_clear_error(llama):
    with (
        forward_passes(llama, most=0),
        pytest.raises(GeneratorUnavailable, match="fewer or shorter exemplars") as caught,
    ):
        await write(llama, soft_prompts(llama, 3), GREEDY)
    assert caught.value.reason == "out_of_memory"


async def test_a_failure_of_the_engine_is_not_a_traceback(llama):
    with (
        forward_passes(llama, fail_with=RuntimeError("shapes")),
        pytest.raises(GeneratorUnavailable, match="the engine failed"),
    ):
        await write(llama, soft_prompts(llama, 1), GREEDY)
    assert llama.state() == "ok"


async def test_a_row_whose_numbers_break_down_leaves_its_neighbours_alone(llama):
    good, bad = soft_prompts(llama, 2)
    broken = Prompt(bad.head, torch.full_like(bad.soft, torch.inf), bad.tail)
    written = await write(llama, [good, broken, bad], GREEDY)
    assert written[1] == Written("", 0, "non_finite")
    assert [written[0], written[2]] == await write(llama, [good, bad], GREEDY)


async def test_cancelling_ends_the_work_between_two_tokens(llama):
    with forward_passes(llama) as sizes:
        work = asyncio.create_task(write(llama, soft_prompts(llama, 2), Decoding(400, 1.0)))
        async with asyncio.timeout(20):
            while len(sizes) < 3:  # noqa: ASYNC110 - nothing tells us
                await asyncio.sleep(0.001)
        work.cancel()
        await asyncio.wait({work})
        assert work.cancelled()
        await write(llama, soft_prompts(llama, 1), Decoding(1))  # the worker is free again
        assert len(sizes) < 300


@contextmanager
def forward_passes(
    engine: TransformersEngine, *, most: int | None = None, fail_with: Exception | None = None
) -> Iterator[list[tuple[int, int]]]:
    """Record (rows, positions) of each forward pass; more rows than `most` are out of memory."""
    sizes: list[tuple[int, int]] = []

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds")
        given = kwargs["input_ids"] if given is None else given
        sizes.append((given.shape[0], given.shape[1]))
        if most is not None and given.shape[0] > most:
            raise torch.OutOfMemoryError("no memory")
        if fail_with is not None:
            raise fail_with

    handle = engine._model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


@contextmanager
def biased(engine: TransformersEngine, *, token: int, by: float) -> Iterator[None]:
    """Make one token the likeliest everywhere."""

    def lift(_: Any, args: Any, output: Any) -> Any:
        output.logits[..., token] += by
        return output

    handle = engine._model.register_forward_hook(lift)
    try:
        yield
    finally:
        handle.remove()
