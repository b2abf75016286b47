"""Settings of the gateway: `SEALWARD_GATEWAY_<NAME>`, and `REDIS_URL`."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field, field_validator

from sealward.kit.settings import ServiceSettings, settings_config


class GatewaySettings(ServiceSettings):
    """What the gateway needs beside what every service needs."""

    model_config = settings_config("gateway")

    inference_address: str
    """host:port of the inference service."""
    redis_url: str = Field(
        validation_alias=AliasChoices("SEALWARD_GATEWAY_REDIS_URL", "REDIS_URL"), repr=False
    )
    """Session store: `unix://PATH` for a private socket or `rediss://…` for TLS."""
    redis_password_file: Path | None = None
    """File with the session store's password, where it has one."""
    policy_file: Path | None = None
    """Policy set (Cedar); the shipped one when not set."""
    bootstrap_file: Path | None = None
    """Where the first start writes the first administrator's one-time password."""
    idle_seconds: int = Field(default=900, ge=5, le=86400)
    """A session ends after this long without a call."""
    life_seconds: int = Field(default=8 * 3600, ge=60, le=7 * 86400)
    """A session ends after this long whatever happens."""
    step_up_seconds: int = Field(default=900, ge=30, le=86400)
    """A proof of the second factor counts as fresh for this long."""
    break_glass_seconds: int = Field(default=1800, ge=60, le=4 * 3600)
    """A session that was opened by breaking the glass ends after this long."""
    time_limit_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Longest time of a prediction whose model says nothing else."""
    append_seconds: float = Field(default=5.0, gt=0, le=60)
    """Longest wait for the log; after that nothing is released."""
    max_response_bytes: int = Field(default=32 << 20, ge=4096, le=60 << 20)
    """Largest response message."""
    max_flights: int = Field(default=1024, ge=1, le=65536)
    """Predictions on their way at most; more are refused at once."""
    audit_window: int = Field(default=1, ge=1, le=64)
    """Messages under way to audit before records gather for the next one."""
    inference_window: int = Field(default=1, ge=1, le=64)
    """Messages under way to inference before calls gather for the next one."""
    login_queue: int = Field(default=16, ge=0, le=1024)
    """Logins that may wait for the password check; more are refused at once."""

    @field_validator("redis_url")
    @classmethod
    def _no_plaintext(cls, value: str) -> str:
        if not value.startswith(("unix://", "rediss://")):
            raise ValueError("must be unix://PATH or rediss://HOST:PORT: no plaintext")
        return value
