"""Typed settings: `SEALWARD_<SERVICE>_<NAME>` in the environment and nothing else.

Unknown names with the service's prefix are refused at start, so that a typing error cannot leave a
safeguard at its default. Secrets are never values: a setting that names a secret names its file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sealward.kit.errors import StartupError

S = TypeVar("S", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """What every service needs. Subclasses set `env_prefix` through `settings_config`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True)

    address: str = "127.0.0.1:0"
    """host:port of the gRPC listener."""
    metrics_address: str = "127.0.0.1:0"
    """host:port of the Prometheus listener (TLS 1.3, client certificate required)."""
    data_dir: Path
    """Folder that the service owns; made with mode 0700."""
    enroll_dir: Path | None = None
    """Folder of local enrolment: a request goes in, a certificate comes out."""
    identity_dir: Path | None = None
    """Folder that `sealward certs join` made, on a machine without the keys service."""
    trust_domain: str = Field(default="sealward.local", pattern=r"^[a-z0-9.-]{1,128}$")
    """Trust domain of every identity; others are refused."""
    keys_address: str = ""
    """host:port of the keys service."""
    audit_address: str = ""
    """host:port of the audit service."""
    transport: Literal["auto", "grpcio"] = "auto"
    """Which transport implements the seam."""
    development: bool = False
    """Serves gRPC reflection, and takes waits that are too short. Never in production."""
    drain_seconds: float = Field(default=10.0, gt=0, le=300)
    """How long calls in flight may take to end when the service stops."""
    start_seconds: float = Field(default=30.0, gt=0, le=600)
    """How long to wait at start for the services that this one needs."""
    max_message_bytes: int = Field(default=4 << 20, ge=4096, le=1 << 30)
    """Largest request message."""
    workers: int = Field(default=72, ge=8, le=1024)
    """Threads of the gRPC server: calls in flight above this wait, then are refused."""
    trust_seconds: float = Field(default=5.0, ge=0.1, le=60)
    """How often the trust bundle is asked for; the same in every service."""
    certificate_seconds: int = Field(default=3600, ge=4, le=86400)
    """Life of the service's certificate; it is renewed at half of it."""
    revocation_seconds: int = Field(default=900, ge=5, le=86400)
    """How long the list of revoked certificates may go unconfirmed before everybody is refused.
    As long as the lease of a key by default: so long a service goes on without keys, no longer."""

    @field_validator("enroll_dir", "identity_dir", mode="before")
    @classmethod
    def _no_path_is_none(cls, value: Any) -> Any:
        # The empty path would be the working folder.
        return value or None


def settings_config(service: str) -> SettingsConfigDict:
    """Return the model_config of a service's settings class."""
    return SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        env_prefix=f"SEALWARD_{service.upper()}_",
    )


def load(settings_type: type[S], service: str, environ: Mapping[str, str] | None = None) -> S:
    """Read a service's settings; raise StartupError naming each wrong one, never its value."""
    prefix = f"SEALWARD_{service.upper()}_"
    known = {f"{prefix}{name.upper()}" for name in settings_type.model_fields}
    unknown = sorted(
        name for name in (environ or os.environ) if name.startswith(prefix) and name not in known
    )
    if unknown:
        raise StartupError(f"unknown setting {', '.join(unknown)}")
    try:
        read: Callable[[], S] = settings_type
        return read()
    except ValidationError as error:
        # What is wrong with several together has no place, and names them itself.
        wrong = sorted(
            {
                f"{_named(prefix, item['loc'][0])}: {item['msg']}"
                if item["loc"]
                else item["msg"].removeprefix("Value error, ")
                for item in error.errors(include_input=False, include_url=False)
            }
        )
        raise StartupError(f"settings: {'; '.join(wrong)}") from None


def _named(prefix: str, place: int | str) -> str:
    """Return the name of a setting; one that has a name of its own keeps it."""
    name = str(place).upper()
    return name if name.startswith(prefix) else f"{prefix}{name}"


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`; raise StartupError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise StartupError(f"an address must be host:port, not {address!r}")
    return host.strip("[]"), int(port)
