"""Settings of the audit service (`SEALWARD_AUDIT_…`)."""

from __future__ import annotations

from pydantic import Field

from sealward.kit.settings import ServiceSettings, settings_config
from services.audit.entry import DEFAULT_TENANT


class AuditSettings(ServiceSettings):
    """What the audit service needs beside what every service needs."""

    model_config = settings_config("audit")

    tenants: str = Field(default="", pattern=r"^([a-z0-9-]{1,32}(,[a-z0-9-]{1,32})*)?$")
    """Whose logs there are, comma-separated. `default` is always there; others are refused."""
    publish_ms: int = Field(default=100, ge=10, le=60_000)
    """Milliseconds between two publications of tiles and checkpoint while the log grows."""
    segment_entries: int = Field(default=1 << 20, ge=1024, le=1 << 20)
    """Entries sealed under one key."""
    waiting_entries: int = Field(default=4096, ge=64, le=1 << 20)
    """Exported spans and control events that may wait for the log; above it callers are refused."""

    @property
    def tenant_names(self) -> list[str]:
        """The tenants, `default` first."""
        others = {name for name in self.tenants.split(",") if name} - {DEFAULT_TENANT}
        return [DEFAULT_TENANT, *sorted(others)]
