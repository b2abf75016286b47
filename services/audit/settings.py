"""Settings of the audit service (`SEALWARD_AUDIT_…`)."""

from __future__ import annotations

from pydantic import Field

from sealward.kit.settings import ServiceSettings, settings_config


class AuditSettings(ServiceSettings):
    """What the audit service needs beside what every service needs."""

    model_config = settings_config("audit")

    publish_ms: int = Field(default=100, ge=10, le=60_000)
    """Milliseconds between two publications of tiles and checkpoint while the log grows."""
    segment_entries: int = Field(default=1 << 20, ge=1024, le=1 << 20)
    """Entries sealed under one key."""
    waiting_entries: int = Field(default=4096, ge=64, le=1 << 20)
    """Exported spans and control events that may wait for the log; above it callers are refused."""
