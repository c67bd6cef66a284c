"""Settings of the scorer (IZ_SCORER_*), and the one place where it reads the environment."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.settings import ServiceSettings


class Settings(ServiceSettings):
    """How the scorer behaves; what it calls is in the targets file."""

    model_config = SettingsConfigDict(env_prefix="IZ_SCORER_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(8002, ge=0, le=65_535)
    targets: Path | None = Field(None, description="the targets file")
    redis_url: SecretStr | None = None
    token: SecretStr | None = Field(
        None, description="bearer token that callers must send; needed off loopback"
    )

    max_attempts: int = Field(5, ge=1, le=20, description="requests per answer, retries included")
    backoff_base_seconds: float = Field(0.5, ge=0, le=60)
    backoff_cap_seconds: float = Field(30.0, gt=0, le=600)
    max_retry_after_seconds: float = Field(900.0, gt=0)
    patience_seconds: float = Field(
        60.0, gt=0, description="wait for a target that is down before an example fails"
    )
    breaker_failures: int = Field(8, ge=1, description="failures in a row that open the breaker")
    breaker_open_seconds: float = Field(1.0, gt=0, description="first pause; doubles up to 30 s")
    condition_after_seconds: float = Field(1.0, gt=0)

    answer_ttl_seconds: float = Field(30 * 86_400.0, gt=0)
    cache_entries: int = Field(200_000, ge=1, description="answers kept by the in-process cache")
    max_response_bytes: int = Field(2 * 1024 * 1024, ge=1024)
    max_waiting: int = Field(20_000, ge=1, description="examples in hand before 429 is answered")
    drain_seconds: float = Field(60.0, gt=0)


def read_environment(name: str) -> str | None:
    """Return an environment variable that the targets file refers to."""
    return os.environ.get(name)  # noqa: TID251 - this module is where the environment is read
