"""The policy sets of this deployment on disk: those in force, in their order, and proposals."""

from __future__ import annotations

import threading
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from services.gateway.database import opening

_SCHEMA = """
CREATE TABLE IF NOT EXISTS policy (
  version INTEGER PRIMARY KEY, digest TEXT NOT NULL, text TEXT NOT NULL, jws BLOB NOT NULL,
  proposed_by TEXT NOT NULL, approved_by TEXT NOT NULL, time INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS proposal (
  version INTEGER NOT NULL, digest TEXT PRIMARY KEY, text TEXT NOT NULL, jws BLOB NOT NULL,
  proposed_by TEXT NOT NULL, approved_by TEXT NOT NULL, time INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A policy set with what is known of it. `time` is in seconds since the epoch.

    `proposed_by` and `approved_by` are `kind/name`; `jws` is the signed form.
    """

    version: int
    digest: str
    text: str
    jws: bytes = b""
    proposed_by: str = ""
    approved_by: str = ""
    time: int = 0


_COLUMNS = ", ".join(field.name for field in fields(Bundle))


class PolicyStore:
    """SQLite, committed to the disk before anybody is told. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; raise StartupError."""
        self._lock = threading.Lock()
        with opening(path, "the policy store") as self._db:
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def active(self) -> Bundle | None:
        """Return the set in force; None when none was ever put in force here."""
        found = self.history(1)
        return found[0] if found else None

    def history(self, limit: int = 1000) -> list[Bundle]:
        """Return what was in force, newest first."""
        return self._read(f"SELECT {_COLUMNS} FROM policy ORDER BY version DESC LIMIT ?", limit)  # noqa: S608

    def proposals(self) -> list[Bundle]:
        """Return what is proposed, oldest first."""
        return self._read(f"SELECT {_COLUMNS} FROM proposal ORDER BY time, digest LIMIT ?", 1000)  # noqa: S608

    def propose(self, bundle: Bundle) -> None:
        """Keep a proposal; one with the same text takes its place."""
        with self._lock:
            self._db.execute(
                f"INSERT OR REPLACE INTO proposal ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                astuple(bundle),
            )

    def reject(self, digest: str) -> bool:
        """Forget a proposal; False when there is none of this digest."""
        with self._lock:
            done = self._db.execute("DELETE FROM proposal WHERE digest = ?", (digest,))
        return done.rowcount == 1

    def activate(self, bundle: Bundle) -> bool:
        """Put a set in force and forget every proposal; False when another change was first.

        Proposals replace the set that they were written against, so none of them fits any more.
        """
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            (newest,) = self._db.execute("SELECT max(version) FROM policy").fetchone()
            if bundle.version != (newest or 0) + 1:
                return False
            self._db.execute(
                f"INSERT INTO policy ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                astuple(bundle),
            )
            self._db.execute("DELETE FROM proposal")
        return True

    def deactivate(self, version: int) -> None:
        """Take the newest set back: its change could not be recorded."""
        with self._lock:
            self._db.execute("DELETE FROM policy WHERE version = ?", (version,))

    def _read(self, query: str, limit: int) -> list[Bundle]:
        with self._lock:
            return [Bundle(*row) for row in self._db.execute(query, (limit,)).fetchall()]
