"""Which storage the settings ask for."""

from __future__ import annotations

from services.audit.backend import Backend, FileBackend
from services.audit.settings import AuditSettings


def open_backend(settings: AuditSettings) -> Backend:
    """Open what keeps entries and index; raise StartupError."""
    if settings.store == "embedded":
        return FileBackend()
    # The driver is loaded where it is used: an embedded log does without its memory.
    from services.audit.postgres_backend import PostgresBackend
    from services.audit.postgres_database import Database, read_url

    database = Database(
        read_url(settings.database_url_file),
        settings.database_schema,
        patience=settings.failover_seconds,
    )
    return PostgresBackend(settings.data_dir, database, wait=settings.start_seconds)
