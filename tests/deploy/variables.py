"""Which environment variables a command of ours reads: its options' and its settings' own."""

from __future__ import annotations

from pydantic_settings import BaseSettings
from typer.main import get_command

from services.cli import app
from services.generator.settings import GeneratorSettings
from services.optimizer.settings import Settings as OptimizerSettings
from services.scorer.settings import Settings as ScorerSettings
from services.settings import CommandSettings

SETTINGS: dict[str, tuple[type[BaseSettings], ...]] = {
    "serve": (OptimizerSettings, ScorerSettings, GeneratorSettings),
    "runner": (OptimizerSettings,),
    "migrate": (OptimizerSettings,),
    "scorer": (ScorerSettings,),
    "generator": (GeneratorSettings,),
    "demo-target": (),
}


def settings_variables(command: str) -> set[str]:
    """The variables of a command's settings classes; each may be a file of secrets too."""
    return {
        f"{kind.model_config['env_prefix']}{field}".upper()
        for kind in (*SETTINGS[command], CommandSettings)
        for field in kind.model_fields
    }


def option_variables(command: str) -> set[str]:
    """The variables of a command's options."""
    found: set[str] = set()
    for parameter in get_command(app).commands[command].params:  # type: ignore[attr-defined]
        names = parameter.envvar or ()
        found |= {names} if isinstance(names, str) else set(names)
    return found
