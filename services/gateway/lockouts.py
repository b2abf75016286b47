"""Who failed too often is locked: a user, and a source. On disk, for each gateway that shares it.

A user is locked after a number of failures in a row, passwords and codes alike, whoever made them;
names that nobody has are locked in the same way, so that a lock says nothing about who exists. A
source (the address that logins come from) is locked after many failures of whatever users. A lock
ends by itself, or when somebody who may takes it away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.database import opening

USER, SOURCE = "user", "source"
_MOST_ROWS = 10_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS failure (
  kind  TEXT NOT NULL,
  name  TEXT NOT NULL,
  count INTEGER NOT NULL,
  last  INTEGER NOT NULL,
  until INTEGER NOT NULL,
  PRIMARY KEY (kind, name)
) STRICT
"""


class Lockouts:
    """SQLite, committed before the login is answered. Thread-safe. `clock` gives epoch seconds.

    `locked` is told the kind of each new lock. A number of failures of 0 turns that lock off.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float],
        *,
        failures: int = 10,
        source_failures: int = 300,
        seconds: int = 900,
        locked: Callable[[str], None] = lambda _kind: None,
    ) -> None:
        """Open or make the file; raise StartupError."""
        self._clock = clock
        self._most = {USER: failures, SOURCE: source_failures}
        self._seconds = seconds
        self._locked = locked
        self._lock = threading.Lock()
        with opening(path, "the file of lockouts") as self._db:
            self._db.execute(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def check(self, user: str, source: str) -> None:
        """Raise LOGIN_LOCKED, with the time that is left, when either of the two is locked."""
        now = self._clock()
        with self._lock:
            (until,) = self._db.execute(
                "SELECT max(until) FROM failure WHERE (kind = ? AND name = ?)"
                " OR (kind = ? AND name = ?)",
                (USER, user, SOURCE, source),
            ).fetchone()
        if until is not None and until > now:
            raise SealwardError(
                Reason.LOGIN_LOCKED,
                "too many failed logins: locked for a while",
                retry_after=until - now,
            )

    def failed(self, user: str, source: str) -> None:
        """Count a failure of a user, a source, or both; an empty name is none."""
        for kind, name in ((USER, user), (SOURCE, source)):
            if name and self._most[kind]:
                self._count(kind, name)

    def succeeded(self, user: str) -> None:
        """Forget a user's failures. Those of a source stay: one good login proves nothing of it."""
        with self._lock:
            self._db.execute("DELETE FROM failure WHERE kind = ? AND name = ?", (USER, user))

    def unlock(self, kind: str, name: str) -> bool:
        """Forget the failures of a user or a source; return whether there were any."""
        with self._lock:
            done = self._db.execute("DELETE FROM failure WHERE kind = ? AND name = ?", (kind, name))
        return done.rowcount > 0

    def locks(self, kind: str) -> dict[str, int]:
        """Return who is locked, and until when (epoch seconds)."""
        with self._lock:
            rows = self._db.execute(
                "SELECT name, until FROM failure WHERE kind = ? AND until > ? ORDER BY name",
                (kind, int(self._clock())),
            ).fetchall()
        return {str(name): int(until) for name, until in rows}

    def _count(self, kind: str, name: str) -> None:
        now = int(self._clock())
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._db.execute(
                "SELECT count, last, until FROM failure WHERE kind = ? AND name = ?", (kind, name)
            ).fetchone()
            count, last, until = row or (0, now, 0)
            # What lies as far back as a lock lasts counts no more, nor does what a lock ended.
            fresh = last + self._seconds > now and not 0 < until <= now
            count = count + 1 if fresh else 1
            locks = count >= self._most[kind] and until <= now
            until = now + self._seconds if locks else until if until > now else 0
            self._db.execute(
                "INSERT OR REPLACE INTO failure VALUES (?, ?, ?, ?, ?)",
                (kind, name, count, now, until),
            )
            # Names come from outside: whoever makes them up shall not fill the disk.
            self._db.execute(
                "DELETE FROM failure WHERE rowid IN (SELECT rowid FROM failure"
                " ORDER BY until DESC, last DESC LIMIT -1 OFFSET ?)",
                (_MOST_ROWS,),
            )
        if locks:
            self._locked(kind)
