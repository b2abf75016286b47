"""Settings of the audit service (`SEALWARD_AUDIT_…`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from sealward.kit.settings import ServiceSettings, settings_config
from services.audit.entry import DEFAULT_TENANT


class AuditSettings(ServiceSettings):
    """What the audit service needs beside what every service needs."""

    model_config = settings_config("audit")

    tenants: str = Field(default="", pattern=r"^([a-z0-9-]{1,32}(,[a-z0-9-]{1,32})*)?$")
    """Whose logs there are, comma-separated. `default` is always there; others are refused."""
    retention_years: int = Field(default=10, ge=6, le=100)
    """Years that a log is kept after its end; six is the floor (45 CFR 164.316)."""
    announce_days: int = Field(default=14, ge=2, le=90)
    """Days before the year's end at which the next log's key is made known."""
    key_overlap_days: int = Field(default=7, ge=2, le=90)
    """Days for which a log's old key signs beside the new one."""
    publish_ms: int = Field(default=100, ge=10, le=60_000)
    """Milliseconds between two publications of tiles and checkpoint while the log grows."""
    segment_entries: int = Field(default=1 << 20, ge=1024, le=1 << 20)
    """Entries sealed under one key."""
    gap_seconds: int = Field(default=60, ge=1, le=86_400)
    """Seconds that a number of a producer may be late before the gap is recorded."""
    waiting_entries: int = Field(default=4096, ge=64, le=1 << 20)
    """Entries that may wait for the log, on each of the two ways in (appended; exported spans and
    control events); above it callers are refused, with a time to wait."""
    store: Literal["embedded", "postgres"] = "embedded"
    """Where entries and index are kept: SQLite files in the data folder, or PostgreSQL."""
    database_url_file: Path | None = None
    """File with libpq's connection string of the PostgreSQL database, password included."""
    database_schema: str = Field(default="sealward_audit", pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    """Schema of this deployment in the database."""
    failover_seconds: float = Field(default=30.0, ge=1, le=600)
    """How long a database that fails over is waited for before the service stops."""

    witness_policy_file: Path | None = None
    """File with the witness policy (C2SP tlog-policy) and the witnesses' URLs; empty = the built-in
    witness alone."""
    witness_ca_file: Path | None = None
    """Certificates to trust for witnesses' URLs (PEM); empty = those of public authorities."""
    witness_seconds: float = Field(default=5.0, ge=0.1, le=3600)
    """Seconds between two rounds of witnesses elsewhere while the log grows."""
    witness_timeout_seconds: float = Field(default=10.0, ge=1, le=60)
    """Seconds within which a witness elsewhere has to answer."""
    witness_hold_seconds: float = Field(default=0.0, ge=0, le=86_400)
    """Seconds that entries may wait for their cosignatures before nothing is released any more;
    0 = releasing never waits for a witness."""
    clock_source: str = Field(default="", pattern=r"^[A-Za-z0-9 .,:_/()-]{0,100}$")
    """What keeps the clock in step, in words, for the record; empty = what the kernel knows."""

    tiles: Literal["directory", "s3"] = "directory"
    """Where tiles and checkpoint are published: in the data folder, or an S3-compatible store."""
    s3_endpoint: str = ""
    """URL of the S3-compatible store; https except on loopback."""
    s3_bucket: str = ""
    """The bucket. Each log is below the prefix and its own name."""
    s3_prefix: str = Field(default="", pattern=r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$")
    """What the logs are below in the bucket; empty = at its top."""
    s3_region: str = "us-east-1"
    """Region of the bucket."""
    s3_access_key_file: Path | None = None
    """File with the access key's id."""
    s3_secret_key_file: Path | None = None
    """File with the secret access key."""
    s3_ca_file: Path | None = None
    """Certificates to trust for the endpoint (PEM); empty = those of public authorities."""
    patient_years: int = Field(default=6, ge=0, le=100)
    """How old the newest event about a patient has to be before the patient's references may be
    destroyed. 45 CFR 164.316 asks for six years: less only where a law asks for erasure."""
    s3_lock_days: int = Field(default=0, ge=0, le=36_500)
    """Days for which full tiles are put under Object Lock; 0 = not, or by the bucket's default."""
    s3_lock_mode: Literal["GOVERNANCE", "COMPLIANCE"] = "COMPLIANCE"
    """How they are locked."""

    @field_validator(
        "database_url_file", "s3_access_key_file", "s3_secret_key_file", "s3_ca_file",
        "witness_policy_file", "witness_ca_file", mode="before",
    )  # fmt: skip
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        # The empty path would be the working folder.
        return value or None

    @property
    def tenant_names(self) -> list[str]:
        """The tenants, `default` first."""
        others = {name for name in self.tenants.split(",") if name} - {DEFAULT_TENANT}
        return [DEFAULT_TENANT, *sorted(others)]
