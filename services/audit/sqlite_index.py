"""The embedded index: SQLite in WAL mode with synchronous=NORMAL, in a file of its own.

No commit waits for the disk: what a power cut takes away is read from the log again. A file that
cannot be read, is of another version or of another log is thrown away and made anew.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sealward.kit.errors import StartupError
from services.audit.index import IndexFailedError, Query, Row, TableDigest
from services.audit.index_sql import where

_VERSION = 4
_COLUMNS = ", ".join(Row._fields)
_MARKS = ", ".join("?" * (len(Row._fields) + 1))
_TYPES = {
    "event_id": "BLOB", "trace_id": "BLOB", "span_id": "BLOB", "parent_id": "BLOB",
    "time": "INTEGER", "caller_seq": "INTEGER",
    "break_glass": "INTEGER", "counted": "INTEGER", "producer_seq": "INTEGER",
}  # fmt: skip
_SCHEMA = f"""
CREATE TABLE events (
  idx INTEGER PRIMARY KEY,
  {", ".join(f"{name} {_TYPES.get(name, 'TEXT')} NOT NULL" for name in Row._fields)}
);
CREATE INDEX events_by_patient ON events (patient) WHERE patient != '';
CREATE INDEX events_by_actor ON events (actor) WHERE actor != '';
CREATE INDEX events_by_model ON events (model) WHERE model != '';
CREATE INDEX events_by_refusal ON events (outcome) WHERE outcome != 'ok';
CREATE INDEX events_by_break_glass ON events (idx) WHERE break_glass;
CREATE TABLE state (
  id INTEGER PRIMARY KEY CHECK (id = 1), origin TEXT NOT NULL, size INTEGER NOT NULL
);
"""
# Rows go in by steps of so many: between two steps the interpreter's lock is asked for, and the
# thread that appends has it.
_STEPS = {
    count: f"INSERT INTO events (idx, {_COLUMNS}) VALUES ({_MARKS})"  # noqa: S608
    + f", ({_MARKS})" * (count - 1)
    for count in (256, 32, 4, 1)
}
_MAINTAIN_BYTES = 16 << 20
_AUTOCHECKPOINT_PAGES = 65_536


class SqliteIndex:
    """An Index in one file (0600). See index.py for the contract of each method."""

    def __init__(self, path: Path, origin: str) -> None:
        """Open the index of the log `origin`, or begin it; raise StartupError."""
        self._path = path
        self._origin = origin
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._writer, self._size = self._open()
            except sqlite3.DatabaseError:
                self._discard()
                self._writer, self._size = self._open()
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only=ON")
        except (OSError, sqlite3.Error) as error:
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            raise StartupError(f"the audit index {path} cannot be opened ({name})") from None

    @property
    def size(self) -> int:
        """See Index."""
        return self._size

    def add(self, first: int, rows: Sequence[Row | None]) -> None:
        """See Index."""
        size = first + len(rows)
        there = [(at, row) for at, row in enumerate(rows, first) if row is not None]
        with self._write_lock:
            db = self._writer
            if first != self._size:
                raise IndexFailedError("rows do not follow the last ones")
            try:
                db.execute("BEGIN IMMEDIATE")
                begin = 0
                for count, insert in _STEPS.items():
                    while begin + count <= len(there):
                        some = there[begin : begin + count]
                        db.execute(insert, [v for at, row in some for v in (at, *row)])
                        begin += count
                db.execute("UPDATE state SET size = ? WHERE id = 1", (size,))
                db.execute("COMMIT")
            except sqlite3.Error as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise _failed(error) from None
            self._size = size

    def rows(self, query: Query) -> list[tuple[int, Row]]:
        """See Index."""
        clause, values = where(query)
        order = "ASC" if query.oldest_first else "DESC"
        found = self._read(
            f"SELECT idx, {_COLUMNS} FROM events {clause} ORDER BY idx {order} LIMIT ?",  # noqa: S608
            (*values, query.limit),
        )
        return [(row[0], Row(*row[1:])) for row in found]

    def row(self, index: int) -> Row | None:
        """See Index."""
        found = self._read(f"SELECT {_COLUMNS} FROM events WHERE idx = ?", (index,))  # noqa: S608
        return Row(*found[0]) if found else None

    def clear(self) -> None:
        """See Index."""
        with self._write_lock:
            try:
                self._writer.executescript(
                    "BEGIN IMMEDIATE; DELETE FROM events; UPDATE state SET size = 0; COMMIT;"
                )
            except sqlite3.Error as error:
                raise _failed(error) from None
            self._size = 0

    def digest(self) -> bytes:
        """See Index."""
        digest = TableDigest()
        after = -1
        while found := self.rows(Query(after_index=after, oldest_first=True, limit=4096)):
            for index, row in found:
                digest.add(index, row)
            after = found[-1][0]
        return digest.value()

    def maintain(self) -> None:
        """See Index: move committed pages from the write-ahead log into the file."""
        try:
            if Path(f"{self._path}-wal").stat().st_size < _MAINTAIN_BYTES:
                return
            with self._write_lock:
                self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except (OSError, sqlite3.Error):
            # It stays where it is; the next round tries again.
            return

    def close(self) -> None:
        """See Index."""
        with self._read_lock:
            self._reader.close()
        with self._write_lock:
            self._writer.close()

    def _open(self) -> tuple[sqlite3.Connection, int]:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        db = self._connect()
        version = db.execute("PRAGMA user_version").fetchone()[0]
        state = None
        if version == _VERSION:
            state = db.execute("SELECT origin, size FROM state WHERE id = 1").fetchone()
        if state is not None and state[0] == self._origin:
            return db, int(state[1])
        if version:
            db.close()
            self._discard()
            return self._open()
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        db.execute("INSERT INTO state (id, origin, size) VALUES (1, ?, 0)", (self._origin,))
        return db, 0

    def _connect(self) -> sqlite3.Connection:
        # Every use is under a lock of ours, from whichever thread.
        db = sqlite3.connect(self._path, timeout=5.0, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint={_AUTOCHECKPOINT_PAGES}")
        # Sorting and savepoints must leave nothing of the index in temporary files.
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute("PRAGMA cache_size=-8192")
        return db

    def _discard(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _read(self, sql: str, values: Sequence[str | int | bytes] = ()) -> list[Any]:
        try:
            with self._read_lock:
                return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _failed(error) from None


def _failed(error: sqlite3.Error) -> IndexFailedError:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return IndexFailedError(f"the audit index failed ({name})")
