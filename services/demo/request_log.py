"""The demo target's log: one JSON line a request, written as the request ends, whatever its end."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from instructzero.errors import InvalidRequest

log = logging.getLogger(__name__)
CLIENT_GONE = 499
"""Logged instead of a status when the client hung up before one was sent."""
_EXAMPLE = re.compile(r"(?:^|\n) ?Input:(.*?)(?:\n ?Output:|\Z)", re.DOTALL)


@dataclass
class Entry:
    """What is known of one request; filled in as it is served."""

    time: str
    request: int
    status: int = CLIENT_GONE
    fault: str | None = None
    example: str | None = None
    instruction: str | None = None
    messages_sha256: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    answer: str | None = None

    def read(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Note what was asked."""
        canonical = json.dumps(messages, sort_keys=True, separators=(",", ":"))
        self.messages_sha256 = hashlib.sha256(canonical.encode()).hexdigest()
        last = messages[-1]["content"]
        found = _EXAMPLE.search(last)
        self.example = found.group(1).strip() if found else last
        before = last[: found.start()] if found else ""
        system = [turn["content"] for turn in messages if turn["role"] in {"system", "developer"}]
        text = "\n".join([*system, *([before] if before else [])])
        self.instruction = text.removeprefix("Instruction:").strip()


class RequestLog:
    """A file to which whole lines are appended; no key is ever in one."""

    def __init__(self, path: Path | None) -> None:
        """Open the file.

        Raises:
            InvalidRequest: it cannot be written.
        """
        try:
            self._file = path.open("ab", buffering=0) if path else None
        except OSError as error:
            raise InvalidRequest(
                f"{path}: cannot be written ({error.strerror}); name another file for the log",
                reason="invalid_log",
            ) from error

    def write(self, entry: Entry, keys: Sequence[str]) -> None:
        """Append one line, from which the given keys are struck out."""
        if self._file is None:
            return
        values = asdict(entry)
        for name, value in values.items():
            if isinstance(value, str):
                for key in keys:
                    value = value.replace(key, "[key]")
                values[name] = value
        try:
            self._file.write(json.dumps(values).encode() + b"\n")
        except OSError as error:
            log.warning("request %s is not in the log: %s", entry.request, error.strerror)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
