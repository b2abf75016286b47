"""Who at the provider is which user here: SQLite, one to one.

A person is `issuer` and `subject` together, which providers never give again; names and mail
addresses they do.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.database import opening

_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (
  issuer  TEXT NOT NULL,
  subject TEXT NOT NULL,
  user    TEXT NOT NULL UNIQUE,
  since   INTEGER NOT NULL,
  PRIMARY KEY (issuer, subject)
) STRICT
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """`user` is this person's name here; `since` in seconds since the epoch."""

    issuer: str
    subject: str
    user: str
    since: int


class Identities:
    """Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; raise StartupError."""
        self._lock = threading.Lock()
        with opening(path, "the file of identities") as self._db:
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def user_of(self, issuer: str, subject: str) -> str | None:
        """Return the name of a person here; None for an unknown one."""
        with self._lock:
            row = self._db.execute(
                "SELECT user FROM identity WHERE issuer = ? AND subject = ?", (issuer, subject)
            ).fetchone()
        return None if row is None else str(row[0])

    def linked(self, user: str) -> bool:
        """Whether somebody at a provider is this user."""
        with self._lock:
            row = self._db.execute("SELECT 1 FROM identity WHERE user = ?", (user,)).fetchone()
        return row is not None

    def link(self, issuer: str, subject: str, user: str) -> Identity:
        """Say who is who; raise ALREADY_EXISTS where either is linked."""
        made = Identity(issuer, subject, user, int(time.time()))
        try:
            with self._lock:
                self._db.execute(
                    "INSERT INTO identity VALUES (?, ?, ?, ?)",
                    (made.issuer, made.subject, made.user, made.since),
                )
        except sqlite3.IntegrityError:
            raise SealwardError(
                Reason.ALREADY_EXISTS, "this person, or this user, is linked: unlink first",
                field="user",
            ) from None  # fmt: skip
        return made

    def unlink(self, user: str) -> bool:
        """Forget who is this user; return whether anybody was."""
        with self._lock:
            done = self._db.execute("DELETE FROM identity WHERE user = ?", (user,))
        return done.rowcount == 1

    def all(self) -> list[Identity]:
        """Return all, sorted by user."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM identity ORDER BY user").fetchall()
        return [Identity(str(r[0]), str(r[1]), str(r[2]), int(r[3])) for r in rows]
