"""Settings of the command line that may not stand on it (IZ_*), and where secrets lie in files."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)


class CommandSettings(BaseSettings):
    """What commands read from the environment alone; options have variables of their own."""

    model_config = SettingsConfigDict(env_prefix="IZ_", frozen=True, extra="ignore")

    api_key: SecretStr | None = None
    """Key for a server that asks for one: an option would show it to every user of the machine."""
    secrets_dir: Path = Path("/run/secrets")
    """Folder of files that hold settings, as container engines mount secrets."""


class ServiceSettings(BaseSettings):
    """Settings from the environment, or from a file named like the variable in lower case."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read what was given, then the environment, then the files of secrets if there are any."""
        folder = CommandSettings().secrets_dir
        if not folder.is_dir():
            return init_settings, env_settings
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, folder)
