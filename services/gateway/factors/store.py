"""Second factors on disk: secrets sealed, recovery codes as hashes.

The branch key's wrapped form lies in the same file; opening it takes the keys service, under a
lease. Each secret is sealed for its user alone: one that is moved to another user does not open.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealward.kit.keysclient import KeyRing
from sealward.seal.context import EncryptionContext
from services.gateway.database import opening
from services.gateway.keyedfile import KeyedFile

CONTEXT = EncryptionContext("default", "user", "second-factor")
_PLACE = "second-factor"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS key (
  id INTEGER PRIMARY KEY CHECK (id = 1), wrapped BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS totp (
  user_id TEXT PRIMARY KEY, sealed BLOB NOT NULL, confirmed INTEGER NOT NULL,
  last_step INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS recovery (
  user_id TEXT NOT NULL, mark TEXT NOT NULL, used INTEGER NOT NULL,
  PRIMARY KEY (user_id, mark)
) STRICT;
CREATE TABLE IF NOT EXISTS security_key (
  credential_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, name TEXT NOT NULL,
  public_key BLOB NOT NULL, sign_count INTEGER NOT NULL, created INTEGER NOT NULL,
  last_used INTEGER NOT NULL, suspended INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class SecurityKey:
    """A WebAuthn credential. `credential_id` is base64url, `public_key` COSE; times epoch seconds.

    A suspended one counts for nothing, and still says that its user has a second factor.
    """

    credential_id: str
    name: str
    public_key: bytes
    sign_count: int
    created: int
    last_used: int
    suspended: bool


class FactorStore(KeyedFile):
    """SQLite, committed to the disk before anybody is told. Thread-safe.

    Sealing and opening raise KEYS_UNAVAILABLE and SEAL_BROKEN.
    """

    def __init__(self, path: Path, ring: KeyRing) -> None:
        """Open or make the file; raise StartupError."""
        with opening(path, "the file of second factors") as db:
            db.executescript(_SCHEMA)
        super().__init__(db, ring, CONTEXT, _PLACE)

    def put_totp(self, user_id: str, secret: str) -> None:
        """Keep a secret that is not confirmed yet, in the place of one that was not either.

        Under a new key where the old one was destroyed: whoever has a factor under that one is
        refused until it is reset, and is never let in without.
        """
        sealed = self._sealing_key().seal(secret.encode(), user_id)
        with self._lock:
            self._db.execute(
                "INSERT INTO totp VALUES (?, ?, 0, 0) ON CONFLICT (user_id) DO UPDATE SET"
                " sealed = excluded.sealed, last_step = 0 WHERE confirmed = 0",
                (user_id, sealed),
            )

    def totp(self, user_id: str) -> tuple[str, bool, int] | None:
        """Return secret, whether it is confirmed, and the last step used; None for none."""
        with self._lock:
            row = self._db.execute(
                "SELECT sealed, confirmed, last_step FROM totp WHERE user_id = ?", (user_id,)
            ).fetchone()
        if row is None:
            return None
        return self._branch_key().open(row[0], user_id).decode(), bool(row[1]), int(row[2])

    def has_totp(self, user_id: str) -> bool:
        """Whether a confirmed secret is there. Opens nothing."""
        with self._lock:
            row = self._db.execute(
                "SELECT 1 FROM totp WHERE user_id = ? AND confirmed = 1", (user_id,)
            ).fetchone()
        return row is not None

    def use_step(self, user_id: str, step: int) -> bool:
        """Spend a step; False when it, or a later one, was spent before."""
        with self._lock:
            done = self._db.execute(
                "UPDATE totp SET last_step = ? WHERE user_id = ? AND last_step < ?",
                (step, user_id, step),
            )
        return done.rowcount == 1

    def confirm(self, user_id: str, step: int, marks: Iterable[str]) -> bool:
        """Let a secret count, with its recovery codes; False when it did already, or is gone."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            done = self._db.execute(
                "UPDATE totp SET confirmed = 1, last_step = ? WHERE user_id = ? AND confirmed = 0",
                (step, user_id),
            )
            if done.rowcount != 1:
                return False
            self._put_recovery(user_id, marks)
        return True

    def put_recovery(self, user_id: str, marks: Iterable[str]) -> None:
        """Replace the recovery codes."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._put_recovery(user_id, marks)

    def use_recovery(self, user_id: str, mark: str) -> bool:
        """Spend a recovery code; False when it is none, or was spent before."""
        with self._lock:
            done = self._db.execute(
                "UPDATE recovery SET used = 1 WHERE user_id = ? AND mark = ? AND used = 0",
                (user_id, mark),
            )
        return done.rowcount == 1

    def recovery_left(self, user_id: str) -> int:
        """Return how many recovery codes are left."""
        with self._lock:
            (count,) = self._db.execute(
                "SELECT count(*) FROM recovery WHERE user_id = ? AND used = 0", (user_id,)
            ).fetchone()
        return int(count)

    def keys(self, user_id: str) -> list[SecurityKey]:
        """Return a user's security keys, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT credential_id, name, public_key, sign_count, created, last_used, suspended"
                " FROM security_key WHERE user_id = ? ORDER BY created, credential_id",
                (user_id,),
            ).fetchall()
        return [
            SecurityKey(
                str(row[0]),
                str(row[1]),
                bytes(row[2]),
                int(row[3]),
                int(row[4]),
                int(row[5]),
                suspended=bool(row[6]),
            )
            for row in rows
        ]

    def has_keys(self, user_id: str) -> bool:
        """Whether a user has a security key, suspended or not."""
        with self._lock:
            row = self._db.execute(
                "SELECT 1 FROM security_key WHERE user_id = ?", (user_id,)
            ).fetchone()
        return row is not None

    def add_key(self, user_id: str, key: SecurityKey, marks: Sequence[str]) -> None:
        """Let a key count, with recovery codes where there are `marks`; raise IntegrityError."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT INTO security_key VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
                (key.credential_id, user_id, key.name, key.public_key, key.sign_count, key.created),
            )
            if marks:
                self._put_recovery(user_id, marks)

    def use_key(self, user_id: str, credential_id: str, count: int, when: int) -> bool:
        """Note a use; False when the counter did not go on, or the key is suspended.

        Keys that do not count say 0 each time (WebAuthn section 6.1.1).
        """
        with self._lock:
            done = self._db.execute(
                "UPDATE security_key SET sign_count = ?, last_used = ? WHERE credential_id = ?"
                " AND user_id = ? AND suspended = 0"
                " AND (sign_count < ? OR (sign_count = 0 AND ? = 0))",
                (count, when, credential_id, user_id, count, count),
            )
        return done.rowcount == 1

    def suspend_key(self, user_id: str, credential_id: str) -> None:
        """Let a key count no more."""
        with self._lock:
            self._db.execute(
                "UPDATE security_key SET suspended = 1 WHERE credential_id = ? AND user_id = ?",
                (credential_id, user_id),
            )

    def remove_key(self, user_id: str, credential_id: str) -> bool:
        """Forget a key, and the recovery codes with the last factor; False for an unknown one."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            done = self._db.execute(
                "DELETE FROM security_key WHERE credential_id = ? AND user_id = ?",
                (credential_id, user_id),
            )
            if not self.has_keys(user_id) and not self.has_totp(user_id):
                self._db.execute("DELETE FROM recovery WHERE user_id = ?", (user_id,))
        return done.rowcount == 1

    def remove(self, user_id: str) -> None:
        """Forget every factor of a user."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM security_key WHERE user_id = ?", (user_id,))
            self._db.execute("DELETE FROM totp WHERE user_id = ?", (user_id,))
            self._db.execute("DELETE FROM recovery WHERE user_id = ?", (user_id,))

    def _put_recovery(self, user_id: str, marks: Iterable[str]) -> None:
        self._db.execute("DELETE FROM recovery WHERE user_id = ?", (user_id,))
        self._db.executemany(
            "INSERT INTO recovery VALUES (?, ?, 0)", [(user_id, mark) for mark in marks]
        )
