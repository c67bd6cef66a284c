"""What an engine writes, all at once and in order."""

from __future__ import annotations

from collections.abc import Sequence

from services.generator.engine import Decoding, Engine, Prompt, Written


async def write(engine: Engine, prompts: Sequence[Prompt], decoding: Decoding) -> list[Written]:
    found = [each async for part in engine.write(prompts, decoding) for each in part]
    assert sorted(each.place for each in found) == list(range(len(prompts)))
    return [each.written for each in sorted(found)]
