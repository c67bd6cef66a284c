"""Named places at which a test may kill, freeze or break this process.

Unarmed, which is every process that nobody configured otherwise, reaching one is a comparison with
None. `arm` is called by composition roots with what the settings say, and by tests.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from instructzero.errors import InvalidRequest

POINTS: Final = (
    "claimed",  # the claim is committed, nothing is read yet
    "recovered",  # what a dead runner had in flight is charged, the journal is not read yet
    "decided",  # a decision is computed, not stored
    "journaled",  # it is stored, nothing of it is done
    "generated",  # the generator has replied, nothing of it is stored
    "written",  # its texts are stored
    "sent",  # calls are reserved, nothing is sent
    "answered",  # an answer is here, not stored
    "recorded",  # an answer is stored
    "scored",  # the step's last score is stored, the step is not done
    "told",  # the step is done, and its events are written
    "measured",  # the final check is done, the result is not stored
    "cancelling",  # the cancel was heard, the result is not stored
    "leaving",  # the lease is about to be given back
    "finished",  # the job has ended
)


class Broken(Exception):
    """What the action `raise` raises: a fault of ours that no code expects."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _break() -> None:
    raise Broken


ACTIONS: Final[Mapping[str, Callable[[], None]]] = {
    "kill": _kill,
    "freeze": _freeze,
    "raise": _break,
}


@dataclass
class _Plan:
    """Which action is due at which visit of which point."""

    due: Mapping[tuple[str, int], Callable[[], None]]
    visits: Counter[str] = field(default_factory=Counter)

    def reach(self, name: str) -> None:
        self.visits[name] += 1
        action = self.due.get((name, self.visits[name]))
        if action is not None:
            action()


_plan: _Plan | None = None


def fail_point(name: str) -> None:
    """Do what was armed for this place; nothing, unless something was."""
    if _plan is not None:
        _plan.reach(name)


def arm(entries: Sequence[str]) -> None:
    """Arm `POINT=ACTION` or `POINT=ACTION@N` (its Nth visit); no entries disarm everything.

    Raises:
        InvalidRequest: there is no such point or action.
    """
    global _plan  # one process, one plan
    due = {}
    for entry in entries:
        point, _, rest = entry.partition("=")
        action, _, visit = rest.partition("@")
        if point not in POINTS or action not in ACTIONS or not (visit or "1").isdecimal():
            raise InvalidRequest(
                f"fail point {entry!r}: write POINT=ACTION@VISIT with a point of "
                f"{', '.join(POINTS)} and an action of {', '.join(ACTIONS)}"
            )
        due[(point, int(visit or "1"))] = ACTIONS[action]
    _plan = _Plan(due) if due else None
