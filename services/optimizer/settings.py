"""Settings of the optimizer (IZ_OPTIMIZER_*): one frozen class, checked at the start."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.settings import ServiceSettings


class Settings(ServiceSettings):
    """What the API process and the runner need to know."""

    model_config = SettingsConfigDict(env_prefix="IZ_OPTIMIZER_", frozen=True, extra="ignore")

    database_url: SecretStr = SecretStr("sqlite:///instructzero.db")
    api_key_hashes: tuple[str, ...] = Field(
        (), description="SHA-256 hex digests of the API keys that may call; see `instructzero key`"
    )
    generator_token: SecretStr | None = Field(None, description="what IZ_GENERATOR_TOKEN is there")
    scorer_token: SecretStr | None = Field(None, description="what IZ_SCORER_TOKEN is there")
    lease_seconds: float = Field(60.0, gt=0)
    heartbeat_seconds: float | None = Field(None, gt=0, description="default: a third of the lease")
    jobs_at_once: int = Field(4, ge=1, le=256)
    poll_seconds: float = Field(0.5, gt=0)
    generator_batch: int = Field(64, ge=1, le=1024, description="points a generator request holds")
    generator_in_flight: int = Field(2, ge=1, description="generator requests of this process")
    generator_patience_seconds: float = Field(600.0, gt=0)
    fail_points: tuple[str, ...] = Field(
        (), description="for tests only: where this process kills, freezes or breaks itself"
    )
    max_fruitless_claims: int = Field(
        5, ge=1, description="claims without progress before a job fails"
    )

    @model_validator(mode="after")
    def _heartbeat_fits_the_lease(self) -> Self:
        if self.renew_every_seconds * 3 > self.lease_seconds * 1.0001:
            raise ValueError("lease_seconds must be at least 3 heartbeats")
        return self

    @property
    def renew_every_seconds(self) -> float:
        """Time between two renewals of a lease."""
        return self.heartbeat_seconds or self.lease_seconds / 3
