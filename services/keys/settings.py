"""Settings of the keys service, `SEALWARD_KEYS_<NAME>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from sealward.kit.settings import ServiceSettings, settings_config


class KeysSettings(ServiceSettings):
    """What the keys service needs beside the common settings.

    `certificate_seconds` is the life of every service's and the administrator's certificate.
    """

    model_config = settings_config("keys")

    unlock_file: Path | None = None
    """File with what opens the root key: an age identity or a passphrase. None = ask at the
    terminal."""
    user_certificate_seconds: int = Field(default=86_400, ge=60, le=7 * 86_400)
    """Life of a user's or workload's certificate."""
    lease_soft_seconds: int = Field(default=300, ge=1, le=86_400)
    """A holder of a branch key asks again after this time."""
    lease_hard_seconds: int = Field(default=900, ge=1, le=86_400)
    """A holder of a branch key forgets it after this time."""
    lease_max_messages: int = Field(default=1 << 20, ge=1, le=1 << 32)
    """Messages that may be sealed under one lease."""
    lease_max_bytes: int = Field(default=64 << 30, ge=1, le=1 << 60)
    """Bytes that may be sealed under one lease."""

    @field_validator("unlock_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        # The empty path would be the working folder.
        return value or None
