"""Settings of the command line that may not stand on it (IZ_*)."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CommandSettings(BaseSettings):
    """What commands read from the environment alone; options have variables of their own."""

    model_config = SettingsConfigDict(env_prefix="IZ_", frozen=True, extra="ignore")

    api_key: SecretStr | None = None
    """Key for a server that asks for one: an option would show it to every user of the machine."""
