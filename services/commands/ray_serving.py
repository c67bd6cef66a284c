"""Serving a generator from a Ray of this machine's own, until a signal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from services.commands.console import Screen
from services.commands.serving import STOPPING, Address, bind, url_of
from services.commands.signals import Stopper

if TYPE_CHECKING:
    from services.generator.settings import GeneratorSettings


def serve_on_ray(
    settings: GeneratorSettings, log_style: Literal["json", "text"], screen: Screen
) -> None:
    """Serve the model with vLLM on Ray Serve until a signal.

    Raises:
        InvalidRequest: Ray or vLLM is missing, the port is in use, the model cannot be served.
    """
    from instructzero.errors import InvalidRequest

    try:
        from services.generator.serve_app import serve_here
    except ImportError as error:
        raise InvalidRequest(
            f"--engine vllm needs Ray Serve ({error}): pip install 'instructzero[cluster]'",
            reason="engine_missing",
        ) from error
    # Ray binds the port itself, a minute from now: what can be said about it is said first.
    with bind(Address(settings.host, settings.port)) as listener:
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        url = url_of(listener)
    screen.say("Starting Ray Serve and vLLM; this takes about a minute …")
    stop = serve_here(settings, log_style=log_style)
    try:
        screen.say(f"Generator on {url}", style="bold")
        asyncio.run(_until_a_signal())
    finally:
        stop()
    screen.say("Stopped in order.")


async def _until_a_signal() -> None:
    await Stopper(STOPPING).wait()
