"""The compose file as an engine reads it: merged, interpolated, one container a service."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+):-(?P<default>[^}]*)\}")


@dataclass(frozen=True)
class Container:
    """What one service starts: its command, its environment, its files of secrets."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    secrets: dict[str, Path]
    """Name of the file under /run/secrets, and where its content lies in the repository."""
    content: dict[str, Any]

    @property
    def is_ours(self) -> bool:
        return str(self.content["image"]).startswith("instructzero-")


def read_compose(**variables: str) -> dict[str, Any]:
    """The file after interpolation; it needs no variable."""
    text = VARIABLE.sub(lambda m: variables.get(m["name"], m["default"]), FILE.read_text())
    assert "${" not in text, "a variable without a default"
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def containers(**variables: str) -> dict[str, Container]:
    content = read_compose(**variables)
    found = {}
    for name, service in content["services"].items():
        secrets = {}
        for entry in service.get("secrets", ()):
            source, target = (
                (entry, entry) if isinstance(entry, str) else (entry["source"], entry["target"])
            )
            secrets[target] = FILE.parent / content["secrets"][source]["file"]
        environment = {key: str(value) for key, value in service.get("environment", {}).items()}
        command = tuple(service.get("command", ()))
        found[name] = Container(name, command, environment, secrets, service)
    return found
