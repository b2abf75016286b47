"""The gateway's files: each a small SQLite database, durable at every commit, closed to others."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sealward.kit.errors import StartupError


@contextmanager
def opening(path: Path, what: str) -> Iterator[sqlite3.Connection]:
    """Open or make a file (0600), for its tables to be made and read within.

    Whatever fails within is a StartupError that names the file. The connection stays open; whoever
    uses it from several threads holds a lock.
    """
    try:
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        yield db
        path.chmod(0o600)
    except (sqlite3.Error, OSError):
        raise StartupError(f"{what} {path.name} cannot be opened") from None
