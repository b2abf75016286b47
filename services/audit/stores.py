"""Which storage the settings ask for."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from sealward.kit.errors import StartupError
from services.audit.backend import Backend, FileBackend
from services.audit.directory_sink import DirectorySinks
from services.audit.settings import AuditSettings
from services.audit.tilesink import Sinks

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def open_backend(settings: AuditSettings) -> Backend:
    """Open what keeps entries and index, and where they are published; raise StartupError."""
    sinks = open_sinks(settings)
    if settings.store == "embedded":
        return FileBackend(sinks)
    # The driver is loaded where it is used: an embedded log does without its memory.
    from services.audit.postgres_backend import PostgresBackend
    from services.audit.postgres_database import Database, read_url

    database = Database(
        read_url(settings.database_url_file),
        settings.database_schema,
        patience=settings.failover_seconds,
    )
    return PostgresBackend(settings.data_dir, database, sinks, wait=settings.start_seconds)


def open_sinks(settings: AuditSettings) -> Sinks:
    """Return where tiles and checkpoints go; raise StartupError."""
    if settings.tiles == "directory":
        return DirectorySinks()
    url = urlsplit(settings.s3_endpoint)
    if not (url.scheme == "https" or (url.scheme == "http" and url.hostname in _LOOPBACK)):
        raise StartupError("SEALWARD_AUDIT_S3_ENDPOINT must be an https URL")
    if not settings.s3_bucket:
        raise StartupError("SEALWARD_AUDIT_S3_BUCKET is not set")
    access_key = _secret("S3_ACCESS_KEY_FILE", settings.s3_access_key_file)
    secret_key = _secret("S3_SECRET_KEY_FILE", settings.s3_secret_key_file)
    if settings.s3_ca_file is not None and not settings.s3_ca_file.is_file():
        raise StartupError("the file of SEALWARD_AUDIT_S3_CA_FILE cannot be read")
    # As above: only who publishes there pays for the client.
    from services.audit.s3_sink import S3Bucket, S3Sinks

    bucket = S3Bucket(
        settings.s3_endpoint,
        settings.s3_bucket,
        access_key,
        secret_key,
        region=settings.s3_region,
        ca_file=str(settings.s3_ca_file) if settings.s3_ca_file else None,
        retention_days=settings.s3_lock_days,
        lock_mode=settings.s3_lock_mode,
    )
    return S3Sinks(bucket, settings.s3_prefix)


def _secret(name: str, path: Path | None) -> str:
    if path is None:
        raise StartupError(f"SEALWARD_AUDIT_{name} is not set")
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        raise StartupError(f"the file of SEALWARD_AUDIT_{name} cannot be read") from None
