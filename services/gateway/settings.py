"""Settings of the gateway: `SEALWARD_GATEWAY_<NAME>`, and `REDIS_URL`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, field_validator, model_validator

from sealward.kit.settings import ServiceSettings, settings_config
from services.gateway.storetls import Remote


class GatewaySettings(ServiceSettings):
    """What the gateway needs beside what every service needs."""

    model_config = settings_config("gateway")

    inference_address: str
    """host:port of the inference service."""
    redis_url: str = Field(
        validation_alias=AliasChoices("SEALWARD_GATEWAY_REDIS_URL", "REDIS_URL"), repr=False
    )
    """Session store: `unix://PATH` for a private socket or `rediss://USER@HOST:PORT[/DB]`."""
    redis_password_file: Path | None = None
    """File with the password of the session store's user; needed with `rediss://`."""
    redis_ca_file: Path | None = None
    """PEM to verify the session store with; Sealward's own authority when not set."""
    redis_cert_file: Path | None = None
    """PEM of the client certificate for the session store, read anew for each connection; the
    gateway's own certificate when not set."""
    redis_key_file: Path | None = None
    """PEM of its private key."""
    policy_file: Path | None = None
    """Policy set (Cedar); the shipped one when not set."""
    policy_profile: Literal["", "second-factor"] = ""
    """Policies that are added to a set that nobody has changed yet: `second-factor` asks people."""
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
    lockout_failures: int = Field(default=10, ge=0, le=1000)
    """Failed logins in a row that lock a user; 0 = never."""
    lockout_source_failures: int = Field(default=300, ge=0, le=1_000_000)
    """Failed logins from one address that lock it; 0 = never (behind one proxy all have one)."""
    lockout_seconds: int = Field(default=900, ge=1, le=86400)
    """How long a lock lasts, and how long failures count."""
    login_share: float = Field(default=0.25, ge=0.02, le=1)
    """How much of the time passwords are hashed while logins queue; in between predictions have
    the machine to themselves."""
    login_queue: int = Field(default=8, ge=0, le=1024)
    """Logins that may wait for the password check; more are refused at once."""

    assertion_audience: str = ""
    """What client assertions have as `aud`; the URL of IssueToken when not set."""
    assertion_leeway_seconds: float = Field(default=30.0, ge=0, le=60)
    """How far the clocks of clients may be from ours."""

    webauthn_rp_id: str = Field(default="", pattern=r"^([a-z0-9.-]{1,253})?$")
    """Domain that security keys are for (WebAuthn); none are enrolled when not set."""
    webauthn_origins: str = ""
    """Pages that may use them, `https://HOST[:PORT]`, apart by commas; else the domain's."""
    oidc_issuer: str = Field(default="", pattern=r"^(https://[A-Za-z0-9.:_/~-]{1,512})?$")
    """Identity provider, by its issuer identifier, to the letter; none when not set."""
    oidc_client_id: str = ""
    """What the provider calls this deployment."""
    oidc_client_secret_file: Path | None = None
    """File with the secret of that client, where the provider gave one."""
    oidc_ca_file: Path | None = None
    """Certificate authority of the provider (PEM); no other is trusted for it."""
    oidc_hosts: str = ""
    """Hosts (HOST or HOST:PORT, apart by commas) of its endpoints beside the issuer's own."""
    oidc_roles_file: Path | None = None
    """Which claims give which roles (JSON); what it does not name gives none."""
    oidc_unknown: Literal["refuse", "provision"] = "refuse"
    """Whether the first login of a person who is nobody here yet makes a user."""
    oidc_name_claim: str = "preferred_username"
    """The claim that has to be the user's name when a login makes a user."""

    @field_validator("redis_url")
    @classmethod
    def _no_plaintext(cls, value: str) -> str:
        if not value.startswith(("unix://", "rediss://")):
            raise ValueError("must be unix://PATH or rediss://HOST:PORT: no plaintext")
        if value.startswith("rediss://"):
            _parts(value)
        return value

    @model_validator(mode="after")
    def _whole_remote(self) -> GatewaySettings:
        remote = self.redis_url.startswith("rediss://")
        if remote and self.redis_password_file is None:
            raise ValueError("SEALWARD_GATEWAY_REDIS_PASSWORD_FILE is needed with rediss://")
        if (self.redis_cert_file is None) != (self.redis_key_file is None):
            raise ValueError(
                "SEALWARD_GATEWAY_REDIS_CERT_FILE and …_KEY_FILE are set together or not at all"
            )
        return self

    def remote_store(self) -> Remote | None:
        """Return where the store is on the network; None for a socket on this machine."""
        if not self.redis_url.startswith("rediss://") or self.redis_password_file is None:
            return None
        host, port, database, user = _parts(self.redis_url)
        return Remote(
            host, port, database, user, self.redis_password_file,
            self.redis_ca_file, self.redis_cert_file, self.redis_key_file,
        )  # fmt: skip


def _parts(url: str) -> tuple[str, int, int, str]:
    """Return host, port, database and user; raise ValueError, which never quotes the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        raise ValueError("must be rediss://USER@HOST:PORT[/DB]") from None
    if parts.password is not None:
        raise ValueError("a password goes into SEALWARD_GATEWAY_REDIS_PASSWORD_FILE, not the URL")
    database = parts.path.strip("/") or "0"
    # A query could turn the verification of certificates off.
    if not parts.hostname or parts.query or parts.fragment or not database.isdigit():
        raise ValueError("must be rediss://USER@HOST:PORT[/DB]")
    if not parts.username:
        raise ValueError("must name the user of the session store: rediss://USER@HOST:PORT")
    return parts.hostname, port, int(database), unquote(parts.username)
