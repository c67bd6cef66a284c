"""What is done to whom, and when: a schedule that a seed decides."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.cluster import LEASE_SECONDS, Cluster, Part


class Kind(NamedTuple):
    """A fault, whom it can befall, and how often compared with others."""

    verb: str
    part: str
    weight: int


KINDS = (
    Kind("kill", "runner", 8),
    Kind("freeze", "runner", 6),
    Kind("drain", "runner", 2),
    Kind("kill", "scorer", 4),
    Kind("freeze", "scorer", 3),
    Kind("kill", "api", 2),
    Kind("freeze", "api", 1),
    Kind("kill", "generator", 1),
    Kind("freeze", "target", 2),
    Kind("crash", "postgres", 2),
    Kind("restart", "redis", 1),
    Kind("flush", "redis", 1),
)


@dataclass
class Faults:
    """Harms a cluster until a time is over, and says so."""

    cluster: Cluster
    seed: int
    say: Callable[[str], None]
    every_seconds: float = 2.0
    done: Counter[str] = field(default_factory=Counter)
    _busy: set[str] = field(default_factory=set)

    def of(self, *parts: str) -> int:
        """How many faults befell these kinds of part."""
        return sum(n for what, n in self.done.items() if what.rpartition(" ")[2] in parts)

    async def strike(self, seconds: float, *, is_over: Callable[[], bool]) -> None:
        """Strike about every `every_seconds` until the time is up or there is nothing to harm.

        Returns when the last harm is mended: a server that is down would stay so.
        """
        draw = random.Random(self.seed)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while time.monotonic() - began < seconds and not is_over():
                kind = draw.choices(KINDS, [kind.weight for kind in KINDS])[0]
                parts = self._parts(kind)
                victim = draw.choice(parts)
                pause, gap = draw.random(), draw.uniform(0.5, 1.5) * self.every_seconds
                name = victim.name if isinstance(victim, Part) else victim
                if name not in self._busy:
                    self._busy.add(name)
                    self.done[f"{kind.verb} {kind.part}"] += 1
                    self.say(f"{time.monotonic() - began:7.1f} s  {kind.verb} {name}")
                    group.create_task(self._harm(kind, victim, name, pause))
                await asyncio.sleep(gap)

    def _parts(self, kind: Kind) -> list[Part] | list[str]:
        if kind.part in {"postgres", "redis"}:
            return [kind.part]
        return [self.cluster.target] if kind.part == "target" else self.cluster.of(kind.part)

    async def _harm(self, kind: Kind, victim: Part | str, name: str, pause: float) -> None:
        """Do the harm and mend it; `pause` in [0, 1) decides how long it lasts."""
        if isinstance(victim, str):
            await self._harm_server(kind.verb)
        elif kind.verb == "freeze":
            victim.signal(signal.SIGSTOP)
            longest = 2 * LEASE_SECONDS if victim.kind == "runner" else 3.0
            await asyncio.sleep(0.5 + pause * longest)
            victim.signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(victim.kill if kind.verb == "kill" else victim.terminate)
            await asyncio.sleep(2 * pause)
            await asyncio.to_thread(victim.start_until_up)
        self._busy.discard(name)

    async def _harm_server(self, verb: str) -> None:
        redis = self.cluster.redis
        if verb == "crash":
            await asyncio.to_thread(self.cluster.postgres.restart)
        elif verb == "restart":
            await asyncio.to_thread(redis.stop)
            await asyncio.to_thread(redis.start)
        else:
            await asyncio.to_thread(redis.flush)
