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
    waiting_entries: int = Field(default=4096, ge=64, le=1 << 20)
    """Exported spans and control events that may wait for the log; above it callers are refused."""
    store: Literal["embedded", "postgres"] = "embedded"
    """Where entries and index are kept: SQLite files in the data folder, or PostgreSQL."""
    database_url_file: Path | None = None
    """File with libpq's connection string of the PostgreSQL database, password included."""
    database_schema: str = Field(default="sealward_audit", pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    """Schema of this deployment in the database."""
    failover_seconds: float = Field(default=30.0, ge=1, le=600)
    """How long a database that fails over is waited for before the service stops."""

    @field_validator("database_url_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        # The empty path would be the working folder.
        return value or None

    @property
    def tenant_names(self) -> list[str]:
        """The tenants, `default` first."""
        others = {name for name in self.tenants.split(",") if name} - {DEFAULT_TENANT}
        return [DEFAULT_TENANT, *sorted(others)]
