"""The models of the targets file: what an operator may write, checked field by field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    field_validator,
    model_validator,
)

from instructzero.contracts import Name
from services.scorer.settings import read_environment


class _Config(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class KeyReference(_Config):
    """Where a secret is: an environment variable or a file, never the secret itself."""

    env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_secret(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("say where the key is, not the key: {env: NAME} or {file: PATH}")  # noqa: TRY004 - pydantic turns only ValueError into a field problem
        return value

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("give exactly one of env and file")
        return self

    def resolve(self) -> SecretStr:
        """Read the secret.

        Raises:
            ValueError: it is not there; says what to do.
        """
        if self.env is not None:
            found = read_environment(self.env)
            if not found:
                raise ValueError(
                    f"the environment variable {self.env} is not set; export it before the start"
                )
        else:
            assert self.file is not None  # noqa: S101 - the validator saw to it
            try:
                found = self.file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"the key file {self.file} cannot be read ({type(error).__name__})"
                ) from error
            if not found:
                raise ValueError(f"the key file {self.file} is empty")
        if not found.isascii() or not found.isprintable():
            raise ValueError("the key holds characters that no HTTP header may hold")
        return SecretStr(found)


class Limits(_Config):
    """What the provider allows on this key and model. Absent: not limited by us."""

    requests_per_minute: float | None = Field(None, gt=0, le=10_000_000)
    tokens_per_minute: float | None = Field(None, gt=0, le=10**12)
    in_flight: int = Field(32, ge=1, le=10_000)
    burst: int | None = Field(
        None, ge=1, description="requests that may go at once; default a tenth of a minute's"
    )


class Price(_Config):
    """US dollars per million tokens."""

    input_per_million: float = Field(ge=0)
    output_per_million: float = Field(ge=0)

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what these tokens cost."""
        return (
            prompt_tokens * self.input_per_million + completion_tokens * self.output_per_million
        ) / 1e6


class Sampling(_Config):
    """What goes into each request besides model and messages; all of it is part of the cache key.

    `extra` is sent as it is, for what one provider has and others do not.
    """

    temperature: float | None = Field(0.0, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, le=1_000_000)
    seed: int | None = None
    stop: tuple[str, ...] | None = Field(None, max_length=4)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    reasoning_effort: str | None = None
    extra: dict[str, JsonValue] = {}


class TargetConfig(_Config):
    """One connection of the targets file."""

    base_url: str
    model: str = Field(min_length=1, max_length=300)
    api_key: KeyReference | None = None
    limits: Limits = Limits()
    price: Price | None = None
    sampling: Sampling = Sampling()
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    timeout_seconds: float = Field(60.0, gt=0, le=3600)
    connect_timeout_seconds: float = Field(10.0, gt=0, le=300)
    proxy: str | None = None

    @field_validator("base_url")
    @classmethod
    def _is_plain_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("write an http:// or https:// address, e.g. https://host/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must not hold a user, password, query or fragment; use api_key")
        return value.rstrip("/")

    def body(self) -> dict[str, Any]:
        """Return the request's fields besides `messages`."""
        sampling = self.sampling.model_dump(exclude_none=True, exclude={"extra", "max_tokens"})
        sampling[self.max_tokens_parameter] = self.sampling.max_tokens
        return {"model": self.model, **sampling, **self.sampling.extra}


class WebhookConfig(_Config):
    """A team's own scorer over HTTP; requests are signed with the secret (HMAC-SHA256).

    The secret is taken as it is, or as base64 after `whsec_`.
    """

    url: str
    secret: KeyReference
    timeout_seconds: float = Field(10.0, gt=0, le=120)
    in_flight: int = Field(16, ge=1, le=1_000, description="requests at once, from each scorer")
    allow_private: bool = Field(False, description="may resolve to a private or loopback address")

    @field_validator("url")
    @classmethod
    def _is_plain_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
            raise ValueError("write an http:// or https:// address without user or password")
        return value


class TargetsFile(_Config):
    """The whole file."""

    targets: Annotated[dict[Name, TargetConfig], Field(min_length=1)]
    webhooks: dict[Name, WebhookConfig] = {}
