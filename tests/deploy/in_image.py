"""Runs a command of ours where only the packages of its image can be imported.

    python tests/deploy/in_image.py BLOCKED.json COMMAND [OPTION ...]

BLOCKED.json lists the top-level modules that the image does not hold.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class Filter(importlib.abc.MetaPathFinder):
    """A finder that does not find what the image does not hold."""

    def __init__(self, finder: Any, blocked: frozenset[str]) -> None:
        self._finder = finder
        self._blocked = blocked

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in self._blocked:
            return None
        found: ModuleSpec | None = self._finder.find_spec(name, path, target)
        return found

    def __getattr__(self, name: str) -> Any:  # importlib.metadata asks finders for more
        return getattr(self._finder, name)


if __name__ == "__main__":
    blocked = frozenset(json.loads(Path(sys.argv[1]).read_text()))
    sys.meta_path[:] = [Filter(finder, blocked) for finder in sys.meta_path]
    sys.argv = ["instructzero", *sys.argv[2:]]
    sys.path.pop(0)  # this script's own folder
    from services.cli import main

    main()
