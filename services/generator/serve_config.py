"""What a Serve config says of the open models: which, how many copies, on what."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from instructzero.contracts import Name
from services.generator.settings import GeneratorSettings

LogStyle = Literal["json", "text"]


class ModelSettings(GeneratorSettings):
    """The generator's settings for one model of a config file; unknown names are refused."""

    model_config = SettingsConfigDict(extra="forbid")

    engine: Literal["transformers", "vllm"] = "vllm"
    device: Literal["auto", "cpu", "cuda"] = "cuda"


class Replicas(BaseModel):
    """How many copies of a model run; between the bounds their number follows the load."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)
    target_requests: float = Field(
        8, gt=0, description="requests in hand for each copy that the number aims at"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Replicas:
        if self.min > self.max:
            raise ValueError("min is greater than max")
        return self


class ServedModel(BaseModel):
    """One open model, the name it has in requests, and how it is deployed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    settings: ModelSettings
    replicas: Replicas = Replicas()
    cpus: float = Field(1, gt=0, description="of each copy, for placement")
    gpus: int | None = Field(
        None, ge=0, description="of each copy; its tensor_parallel on `cuda`, else none"
    )

    @property
    def n_gpus(self) -> int:
        """GPUs of one copy."""
        if self.gpus is not None:
            return self.gpus
        return self.settings.tensor_parallel if self.settings.device == "cuda" else 0


class ServeArgs(BaseModel):
    """What stands under `args` in a Serve config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[ServedModel, ...] = Field(min_length=1)
    host: str = Field("0.0.0.0", description="what http_options.host says")  # noqa: S104
    fronts: int = Field(1, ge=1, description="copies of the part that reads requests")
    log_style: LogStyle = "json"

    @model_validator(mode="after")
    def _distinct(self) -> ServeArgs:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError("two models have the same name")
        return self
