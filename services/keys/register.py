"""The register: which certificates are out, who may have one, and the sealed list of those revoked.

One SQLite file (WAL, synchronous=FULL) in the service's data folder. A certificate stands in it
before it is handed out, so whoever revokes an identity finds all that it has. Rows of certificates
are kept for a while after their end, for the reader; the audit log keeps what happened for good.

Holds no key and nothing about a patient: serial numbers, identities, times, digests of public keys
and of join tokens.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason

_SCHEMA = """
CREATE TABLE IF NOT EXISTS issued (
  serial TEXT PRIMARY KEY, identity TEXT NOT NULL, spki BLOB NOT NULL,
  issued_at INTEGER NOT NULL, not_after INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS issued_by_identity ON issued (identity, not_after);
CREATE INDEX IF NOT EXISTS issued_by_end ON issued (not_after);
CREATE TABLE IF NOT EXISTS join_tokens (
  hash BLOB PRIMARY KEY, identity TEXT NOT NULL, made_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL, used_at INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revocations (
  id INTEGER PRIMARY KEY CHECK (id = 1), wrapped BLOB NOT NULL, sealed BLOB NOT NULL
);
"""
_KEPT_SECONDS = 30 * 86400
_PRUNE_EVERY = 256


@dataclass(frozen=True, slots=True)
class JoinRow:
    """A join token, without the token. Epoch seconds; `used_at` 0 = it was not."""

    identity: str
    expires_at: int
    used_at: int


@dataclass(frozen=True, slots=True)
class IssuedRow:
    """A certificate. `serial`: lower-case hex; `spki`: SHA-256 of its public key; epoch seconds."""

    serial: str
    identity: str
    spki: bytes
    issued_at: int
    not_after: int


class Register:
    """The open register. Thread-safe; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create it; raise StartupError when it is damaged or cannot be used."""
        self._lock = threading.RLock()
        self._added = 0
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(
                path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            sound = self._db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        except (OSError, sqlite3.Error):
            sound = False
        if not sound:
            raise StartupError(
                f"the register of certificates {path} is damaged, or cannot be written: move it "
                "aside to begin a new one (what was revoked is then known no more)"
            )

    def add(self, row: IssuedRow) -> None:
        """Enter a certificate, durably; raise KEYSTORE_UNAVAILABLE."""
        with self._writing():
            self._db.execute(
                "INSERT INTO issued VALUES (?, ?, ?, ?, ?)",
                (row.serial, row.identity, row.spki, row.issued_at, row.not_after),
            )
            self._added += 1
            if self._added % _PRUNE_EVERY == 0:
                self._db.execute(
                    "DELETE FROM issued WHERE not_after < ?", (row.issued_at - _KEPT_SECONDS,)
                )

    def find(self, serial: str) -> IssuedRow | None:
        """Return a certificate; None when it is not in the register."""
        rows = self._rows("serial = ?", serial)
        return rows[0] if rows else None

    def living(self, now: int, identity: str = "", limit: int = -1) -> list[IssuedRow]:
        """Certificates that end after `now`, of one identity or of all: by identity, newest first.

        At most `limit`; below 0 = all.
        """
        if identity:
            return self._rows(
                "identity = ? AND not_after > ? ORDER BY issued_at DESC LIMIT ?",
                identity,
                now,
                limit,
            )
        return self._rows(
            "not_after > ? ORDER BY identity, issued_at DESC, serial LIMIT ?", now, limit
        )

    def add_token(self, token_hash: bytes, identity: str, now: int, expires_at: int) -> None:
        """Enter a join token (SHA-256 of it), durably; raise KEYSTORE_UNAVAILABLE."""
        with self._writing():
            self._db.execute("DELETE FROM join_tokens WHERE expires_at < ?", (now - _KEPT_SECONDS,))
            self._db.execute(
                "INSERT INTO join_tokens (hash, identity, made_at, expires_at) VALUES (?, ?, ?, ?)",
                (token_hash, identity, now, expires_at),
            )

    def use_token(self, token_hash: bytes, now: int) -> JoinRow | None:
        """Use a join token up, durably, and return it as it was before; None when there is none.

        Of two who use the same one at once, one finds it unused. Raises KEYSTORE_UNAVAILABLE.
        """
        with self._writing():
            row = self._db.execute(
                "SELECT identity, expires_at, used_at FROM join_tokens WHERE hash = ?",
                (token_hash,),
            ).fetchone()
            self._db.execute(
                "UPDATE join_tokens SET used_at = ? WHERE hash = ? AND used_at = 0",
                (now, token_hash),
            )
        return None if row is None else JoinRow(*row)

    def void_tokens(self, identity: str, now: int) -> None:
        """Use up every join token of an identity; raise KEYSTORE_UNAVAILABLE."""
        with self._writing():
            self._db.execute(
                "UPDATE join_tokens SET used_at = ? WHERE identity = ? AND used_at = 0",
                (now, identity),
            )

    def note(self, name: str) -> dict[str, Any]:
        """Return a note (a JSON object); empty when there is none."""
        with self._lock:
            row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row else {}
        return found

    def put_note(self, name: str, value: dict[str, Any]) -> None:
        """Replace a note, durably; raise KEYSTORE_UNAVAILABLE."""
        with self._writing():
            self._db.execute(
                "INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(value))
            )

    def sealed_revocations(self) -> tuple[bytes, bytes] | None:
        """Return wrapped key and sealed list; None before the first one."""
        with self._lock:
            row = self._db.execute("SELECT wrapped, sealed FROM revocations").fetchone()
        return None if row is None else (bytes(row[0]), bytes(row[1]))

    def put_revocations(self, wrapped: bytes, sealed: bytes) -> None:
        """Replace the sealed list, durably; raise KEYSTORE_UNAVAILABLE."""
        with self._writing():
            self._db.execute(
                "INSERT OR REPLACE INTO revocations VALUES (1, ?, ?)", (wrapped, sealed)
            )

    def forget_revocations(self) -> None:
        """Remove a sealed list that nothing opens any more; raise KEYSTORE_UNAVAILABLE."""
        with self._writing():
            self._db.execute("DELETE FROM revocations")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep everybody else from entering certificates."""
        with self._lock:
            yield

    def _rows(self, where: str, *values: object) -> list[IssuedRow]:
        query = f"SELECT serial, identity, spki, issued_at, not_after FROM issued WHERE {where}"  # noqa: S608 - our own words
        with self._lock:
            return [IssuedRow(*row) for row in self._db.execute(query, values)]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise SealwardError(
                    Reason.KEYSTORE_UNAVAILABLE,
                    "the register of certificates cannot be written",
                    retry_after=1.0,
                ) from None
