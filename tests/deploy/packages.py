"""What an image installs, worked out from its list and the metadata of what is installed here."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement

from tests.deploy.compose import ROOT

OURS = frozenset({"instructzero", "services", "tests", "benchmarks"})


def listed(part: str) -> list[str]:
    """The lines of an image's list."""
    text = (ROOT / "deploy" / "docker" / f"requirements-{part}.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@cache
def distributions(part: str) -> frozenset[str]:
    """Everything that an image's list brings along on this machine."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [Requirement(name) for name in listed(part)]
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        key = f"{name}[{','.join(sorted(wanted.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for line in lines:
            each = Requirement(line)
            extras = wanted.extras or {""}
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(each)
    return frozenset(found)


def blocked_modules(part: str) -> list[str]:
    """The top-level modules installed here that an image does not hold."""
    held = distributions(part)
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if module not in OURS
        and not any(re.sub(r"[-_.]+", "-", owner).lower() in held for owner in owners)
    )
