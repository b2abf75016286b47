"""A spool on disk for records that audit has not yet acknowledged.

What `append` returned from is on the disk (SQLite, WAL, synchronous=FULL) and stays there until
audit has it, through restarts of either side. Each record gets the next number of an unbroken
sequence, so that a gap at the other end shows a loss. A full spool refuses: nothing is ever
dropped to make room.

A record is a serialised opentelemetry.proto.trace.v1.Span that has passed the allow-list. Patient
references never come here.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.kit.wire import FIXED64, WireError, scan

# Span.end_time_unix_nano
_END_TIME = 8
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS refused (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS about (id INTEGER PRIMARY KEY CHECK (id = 1), instance TEXT NOT NULL);
"""

Build = Callable[[int], bytes]
"""Makes a record from its sequence number."""


class Spool:
    """The spool of one process; thread-safe. One process at a time may have it open.

    `capacity` bounds the number of waiting records.
    """

    def __init__(self, path: Path, *, capacity: int = 200_000) -> None:
        """Open or create the spool file (0600); raise StartupError when it cannot be used."""
        self._capacity = capacity
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._closed = False
        self._lost = 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(
                path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._depth = int(self._db.execute("SELECT count(*) FROM spans").fetchone()[0])
            self._refused = int(self._db.execute("SELECT count(*) FROM refused").fetchone()[0])
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name='spans'").fetchone()
            self._next = (int(row[0]) if row else 0) + 1
            self._instance = self._name_numbers()
        except (OSError, sqlite3.Error):
            raise StartupError(f"the spool {path} cannot be opened: is it in use?") from None

    @property
    def depth(self) -> int:
        """How many records wait for an acknowledgement."""
        with self._lock:
            return self._depth

    @property
    def instance(self) -> str:
        """Whose numbers these are: 8 hex digits, drawn when the numbers began; empty = not known.

        A spool that was thrown away begins again at 1, and under another name.
        """
        return self._instance

    @property
    def capacity(self) -> int:
        """How many records may wait."""
        return self._capacity

    @property
    def lost(self) -> int:
        """How many records could not be stored since the start: it was full, or its disk failed.

        What was to be recorded did not happen then, or says so itself.
        """
        with self._lock:
            return self._lost

    def oldest(self) -> int:
        """Return when the record that has waited longest was made, 0 when none waits.

        In nanoseconds since the epoch, as the record says.
        """
        with self._lock:
            if self._closed or not self._depth:
                return 0
            try:
                rows = self._db.execute("SELECT body FROM spans ORDER BY seq LIMIT 1").fetchall()
            except sqlite3.Error:
                return 0
        return _made_at(rows[0][0]) if rows else 0

    @property
    def refused(self) -> int:
        """How many records audit refused for good. They are kept; the number has to stay 0."""
        with self._lock:
            return self._refused

    def append(self, build: Build) -> int:
        """Store one record durably and return its sequence number (from 1).

        Raise AUDIT_UNAVAILABLE when the spool is full or the disk does not take it.
        """
        return self.extend((build,))

    def extend(self, builds: Sequence[Build]) -> int:
        """Store records durably, all or none; return the number of the last. Errors as `append`."""
        with self._lock:
            if self._depth + len(builds) > self._capacity:
                self._lost += len(builds)
                raise _unavailable("the audit spool is full")
            first = self._next
            rows = [(first + n, build(first + n)) for n, build in enumerate(builds)]
            try:
                with self._transaction():
                    self._db.executemany("INSERT INTO spans (seq, body) VALUES (?, ?)", rows)
            except SealwardError:
                self._lost += len(builds)
                raise
            self._next = first + len(rows)
            self._depth += len(rows)
            self._filled.notify_all()
            return self._next - 1

    def peek(self, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """Return the oldest waiting records as (number, record), at least one if there is any."""
        taken: list[tuple[int, bytes]] = []
        size = 0
        with self._lock:
            if self._closed:
                return []
            rows = self._db.execute("SELECT seq, body FROM spans ORDER BY seq LIMIT ?", (limit,))
            for seq, body in rows.fetchall():
                size += len(body)
                if taken and size > max_bytes:
                    break
                taken.append((seq, body))
        return taken

    def remove(self, numbers: Sequence[int]) -> None:
        """Forget records that audit has acknowledged."""
        with self._lock, self._transaction():
            self._db.executemany("DELETE FROM spans WHERE seq = ?", [(n,) for n in numbers])
            self._depth -= len(numbers)

    def refuse(self, number: int) -> None:
        """Set aside one record that audit refused for good."""
        with self._lock, self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO refused SELECT seq, body FROM spans WHERE seq = ?",
                (number,),
            )
            self._db.execute("DELETE FROM spans WHERE seq = ?", (number,))
            self._depth -= 1
            self._refused += 1

    def wait(self, timeout: float) -> bool:
        """Block until records wait, the spool closes, or `timeout` seconds; True if any waits."""
        with self._lock:
            self._filled.wait_for(lambda: self._depth or self._closed, timeout)
            return self._depth > 0 and not self._closed

    def close(self) -> None:
        """Close the file. What waits stays for the next start."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._filled.notify_all()
                self._db.close()

    def _name_numbers(self) -> str:
        found = self._db.execute("SELECT instance FROM about").fetchone()
        if found is not None:
            return str(found[0])
        if self._next > 1:
            if self._depth:
                # Of an earlier version, with records on their way: named once they are gone.
                return ""
            self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'spans'")
            self._next = 1
        instance = secrets.token_hex(4)
        self._db.execute("INSERT INTO about (id, instance) VALUES (1, ?)", (instance,))
        return instance

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._closed:
            raise _unavailable("the audit spool is closed")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error:
            # SQLite undid the transaction, or the rollback does. Nothing is counted as stored.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise _unavailable("the audit spool cannot be written") from None


def _made_at(span: bytes) -> int:
    """Return the end of a serialised span, 0 where it has none."""
    try:
        for number, wire_type, start, end in scan(span):
            if number == _END_TIME and wire_type == FIXED64:
                return int.from_bytes(span[start:end], "little")
    except WireError:
        pass
    return 0


def _unavailable(message: str) -> SealwardError:
    return SealwardError(Reason.AUDIT_UNAVAILABLE, message, retry_after=1.0)
