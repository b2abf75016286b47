"""The ledger of ended sessions in the file of their owners: a sessions.Ledger over two tables."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import ClassVar

from services.gateway.session import Session

ENDED = """
CREATE TABLE IF NOT EXISTS ended_session (
  session_id TEXT PRIMARY KEY,
  until      INTEGER NOT NULL
) STRICT
"""


class EndedSessions:
    """What directories of owners have in common. Thread-safe by the directory's lock.

    `_TABLE` has the owners, each with an id (`_ID`), a generation and whether it is disabled.
    """

    _TABLE: ClassVar[str]
    _ID: ClassVar[str]
    _db: sqlite3.Connection
    _lock: threading.Lock

    def live(self, session: Session) -> bool:
        """Whether a session that the store holds was not ended: alone, or all of its owner's."""
        with self._lock:
            owner = self._db.execute(
                f"SELECT 1 FROM {self._TABLE} WHERE {self._ID} = ? AND generation = ?"  # noqa: S608
                " AND disabled = 0",
                (session.user_id, session.generation),
            ).fetchone()
            ended = self._db.execute(
                "SELECT 1 FROM ended_session WHERE session_id = ?", (session.session_id,)
            ).fetchone()
        return owner is not None and ended is None

    def end_session(self, session_id: str, until: int) -> None:
        """Remember that a session was ended; `until` (epoch seconds) it would have expired."""
        with self._lock:
            self._db.execute("DELETE FROM ended_session WHERE until < ?", (int(time.time()),))
            self._db.execute(
                "INSERT OR REPLACE INTO ended_session VALUES (?, ?)", (session_id, until)
            )

    def end_sessions(self, user_id: str) -> None:
        """Remember that every session that an owner has now was ended."""
        with self._lock:
            self._db.execute(
                f"UPDATE {self._TABLE} SET generation = generation + 1 WHERE {self._ID} = ?",  # noqa: S608
                (user_id,),
            )

    def end_everybody(self) -> list[str]:
        """Remember that every session of everybody was ended; return the ids of all owners."""
        with self._lock:
            self._db.execute(f"UPDATE {self._TABLE} SET generation = generation + 1")  # noqa: S608
            rows = self._db.execute(f"SELECT {self._ID} FROM {self._TABLE}").fetchall()  # noqa: S608
        return [str(row[0]) for row in rows]
