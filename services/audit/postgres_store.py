"""The production store: PostgreSQL, one statement a batch, one writer a log.

Two things keep a second writer out. A session-level advisory lock lets one service wait for
another. It is not enough, because a server that fails over forgets it and a process that was
paused does not know; so whoever begins to write draws a token and takes the next epoch, and every
statement that writes names its epoch. After a takeover the earlier writer can commit nothing, ever.

A commit whose answer is lost may have happened. Then the writer connects again, takes the next
epoch (from here on the lost statement can no longer happen) and reads the head: it is the new one
or the old one, and any other ends the service. That claim is itself a synchronous commit, so what
is read after it is on the standby, too.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

import psycopg

from sealward.kit.errors import StartupError
from sealward.tlog.merkle import EMPTY_ROOT, HASH_SIZE
from services.audit.framing import framed, unframed
from services.audit.postgres_database import (
    ConnectionLostError,
    Database,
    Parameters,
    failure,
)
from services.audit.store import EventKey, Head, StoreBrokenError, StoreError, StoreFullError

_TOKEN_BYTES = 16
_PAUSE_SECONDS = 0.1
# How often an idle writer looks whether it still is the writer.
_CHECK_SECONDS = 5.0
# Entries, ids and head in one statement, so one transaction and one round trip; what does not find
# its epoch and size stores nothing. The row of `logs` is locked first: a takeover waits for it.
_COMMIT = """
WITH claimed AS (
  UPDATE logs SET size = %(size)s, root = %(root)b
  WHERE id = %(log)s AND epoch = %(epoch)s AND size = %(first)s RETURNING id
), stored AS (
  INSERT INTO batches (log, first, count, hashes, leaves)
  SELECT id, %(first)s, %(count)s, %(hashes)b, %(leaves)b FROM claimed
), named AS (
  INSERT INTO ids (log, event_id, idx, fingerprint)
  SELECT id, substring(%(ids)b::bytea FROM n * 16 + 1 FOR 16), %(first)s + n,
    substring(%(prints)b::bytea FROM n * 16 + 1 FOR 16)
  FROM claimed, generate_series(0, %(count)s - 1) AS n
)
SELECT count(*) FROM claimed
"""
_PUT = """
WITH claimed AS (SELECT id FROM logs WHERE id = %(log)s AND epoch = %(epoch)s FOR UPDATE),
stored AS (
  INSERT INTO meta (log, name, value)
  SELECT id, given.name, given.value
  FROM claimed, unnest(%(names)s::text[], %(values)b::bytea[]) AS given (name, value)
  ON CONFLICT (log, name) DO UPDATE SET value = EXCLUDED.value
)
SELECT count(*) FROM claimed
"""
_FORGET = """
WITH claimed AS (SELECT id FROM logs WHERE id = %(log)s AND epoch = %(epoch)s FOR UPDATE),
forgotten AS (
  DELETE FROM meta USING claimed WHERE meta.log = claimed.id AND starts_with(name, %(prefix)s)
  RETURNING 1
)
SELECT (SELECT count(*) FROM claimed), (SELECT count(*) FROM forgotten)
"""
_BEGIN = """
INSERT INTO logs (name, epoch, writer, size, root) VALUES (%s, 1, %b, 0, %b)
ON CONFLICT (name) DO UPDATE SET epoch = logs.epoch + 1, writer = EXCLUDED.writer
RETURNING id, epoch, size, root
"""
_REGAIN = """
UPDATE logs SET epoch = epoch + 1 WHERE id = %s AND writer = %b RETURNING epoch, size, root
"""
_FIND = "SELECT event_id, idx, fingerprint FROM ids WHERE log = %s AND event_id = ANY(%b)"
_BATCHES = """
SELECT first, count, {column} FROM batches WHERE log = %(log)s AND first < %(end)s AND first >=
  (SELECT max(first) FROM batches WHERE log = %(log)s AND first <= %(start)s) ORDER BY first
"""


class SealedPostgresStore:
    """A LogStore in PostgreSQL that nobody writes any more. See store.py for each method."""

    def __init__(self, database: Database, name: str) -> None:
        """Open the log `name`; raise StartupError when it is not there."""
        self._database = database
        try:
            rows = database.read("SELECT id, size, root FROM logs WHERE name = %s", (name,))
        except StoreError as error:
            raise _not_opened(name, error) from None
        if not rows:
            raise StartupError(f"the audit database has no log {name}")
        self._log, size, root = rows[0]
        self._head = Head(size, root)

    def head(self) -> Head | None:
        """See LogStore."""
        return self._head if self._head.size else None

    def commit(
        self,
        first: int,  # noqa: ARG002
        leaves: Sequence[bytes],  # noqa: ARG002
        hashes: Sequence[bytes],  # noqa: ARG002
        keys: Sequence[EventKey],  # noqa: ARG002
        head: Head,  # noqa: ARG002
    ) -> None:
        """See LogStore."""
        raise _sealed()

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """See LogStore."""
        rows = self._database.read(_FIND, (self._log, list(event_ids)))
        return {row[0]: (row[1], row[2]) for row in rows}

    def leaves(self, start: int, end: int) -> list[bytes]:
        """See LogStore."""
        found: list[bytes] = []
        for first, count, joined in self._batches("leaves", start, end):
            low, high = max(start - first, 0), min(end - first, count)
            found += unframed(joined, high)[low:]
        if len(found) != max(0, end - start):
            raise StoreBrokenError("entries are missing from the store")
        return found

    def hashes(self, start: int, end: int) -> bytes:
        """See LogStore."""
        parts = []
        for first, count, joined in self._batches("hashes", start, end):
            low, high = max(start - first, 0), min(end - first, count)
            parts.append(joined[low * HASH_SIZE : high * HASH_SIZE])
        found = b"".join(parts)
        if len(found) != max(0, end - start) * HASH_SIZE:
            raise StoreBrokenError("hashes are missing from the store")
        return found

    def get(self, name: str) -> bytes | None:
        """See LogStore."""
        query = "SELECT value FROM meta WHERE log = %s AND name = %s"
        rows = self._database.read(query, (self._log, name))
        return bytes(rows[0][0]) if rows else None

    def names(self, prefix: str) -> list[str]:
        """See LogStore."""
        query = "SELECT name FROM meta WHERE log = %s AND starts_with(name, %s)"
        return sorted(row[0] for row in self._database.read(query, (self._log, prefix)))

    def begin(self, first: int, leaves: Sequence[bytes]) -> None:
        """See LogStore: a batch is one statement, at its commit."""

    def framed(self, start: int, end: int) -> bytes:
        """See LogStore."""
        return framed(self.leaves(start, end))

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:  # noqa: ARG002
        """See LogStore."""
        raise _sealed()

    def forget(self, prefix: str) -> int:  # noqa: ARG002
        """See LogStore."""
        raise _sealed()

    def seal(self) -> None:
        """See LogStore."""

    def maintain(self) -> None:
        """See LogStore."""

    def close(self) -> None:
        """See LogStore: the connections are the database's."""

    def _batches(self, column: str, start: int, end: int) -> list[Any]:
        if end <= start:
            return []
        return self._database.read(
            _BATCHES.format(column=column), {"log": self._log, "start": start, "end": end}
        )


class PostgresStore(SealedPostgresStore):
    """A LogStore in PostgreSQL that this process writes. See store.py for each method."""

    def __init__(self, database: Database, name: str, *, wait: float = 0.0) -> None:
        """Become the writer of the log `name`, which is made when it is new.

        Another writer is waited for `wait` seconds; raise StartupError when it stays.
        """
        self._database = database
        self._name = name
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._lock_key = _lock_key(database.schema, name)
        self._lock = threading.Lock()
        self._warned = False
        self._has_lock = False
        try:
            self._db = self._connect()
            try:
                self._log, self._epoch, self._head = self._begin(wait)
            except Exception:
                self._db.close()
                raise
        except StoreError as error:
            raise _not_opened(name, error) from None
        self._checked = time.monotonic()

    def head(self) -> Head | None:
        """See LogStore."""
        with self._lock:
            return self._head if self._head.size else None

    def commit(
        self,
        first: int,
        leaves: Sequence[bytes],
        hashes: Sequence[bytes],
        keys: Sequence[EventKey],
        head: Head,
    ) -> None:
        """See LogStore."""
        values = {
            "log": self._log,
            "first": first,
            "count": len(leaves),
            "size": head.size,
            "root": head.root,
            "hashes": b"".join(hashes),
            "leaves": framed(leaves),
            "ids": b"".join([key[0] for key in keys]),
            "prints": b"".join([key[1] for key in keys]),
        }
        with self._lock:
            if first != self._head.size:
                raise StoreBrokenError("a batch does not follow the last one")
            self._write(_COMMIT, values, head)

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """See LogStore."""
        values = (self._log, list(event_ids))
        # On the connection that commits: it has seen every commit, wherever the database is now.
        with self._lock:
            rows = self._try(lambda: self._execute(_FIND, values))
        return {row[0]: (row[1], row[2]) for row in rows}

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:
        """See LogStore."""
        given = dict(values)
        parameters = {"log": self._log, "names": list(given), "values": list(given.values())}
        with self._lock:
            self._write(_PUT, parameters)

    def forget(self, prefix: str) -> int:
        """See LogStore. The rows go at once; their pages go with the server's next VACUUM.

        So do the server's own log and its standby keep them for a while (docs/storage.md).
        """
        with self._lock:
            rows = self._write(_FORGET, {"log": self._log, "prefix": prefix})
        return int(rows[0][1]) if rows else 0

    def seal(self) -> None:
        """See LogStore: who opens it as sealed asks for no right to write."""
        self.close()

    def maintain(self) -> None:
        """See LogStore: find out in time that another writer has taken over."""
        if time.monotonic() < self._checked + _CHECK_SECONDS or not self._lock.acquire(
            blocking=False
        ):
            return
        try:
            query = "SELECT epoch FROM logs WHERE id = %s"
            rows = self._try(lambda: self._execute(query, (self._log,)))
            if [row[0] for row in rows] != [self._epoch]:
                raise _taken_over()
            if not self._has_lock:
                self._locked()
            self._checked = time.monotonic()
        finally:
            self._lock.release()

    def close(self) -> None:
        """See LogStore."""
        with self._lock:
            self._db.close()

    def _write(self, query: str, values: dict[str, Any], head: Head | None = None) -> list[Any]:
        """Run a statement that writes under this epoch until it is known to have happened."""
        rows = self._try(lambda: self._execute(query, {**values, "epoch": self._epoch}), head)
        if [row[0] for row in rows] not in ([1], []):
            raise _taken_over()
        if head is not None:
            self._head = head
        return rows

    def _try(self, action: Callable[[], list[Any]], head: Head | None = None) -> list[Any]:
        """Run `action`; after a lost connection regain the log and repeat it.

        Not when the head is then the one that it was to store: return no rows.
        """
        before = self._head
        ends = 0.0
        while True:
            try:
                return action()
            except ConnectionLostError:
                ends = ends or time.monotonic() + self._database.patience
                self._regain(ends)
            if head is not None and self._head == head:
                return []
            if self._head != before:
                raise StoreBrokenError("the head of the audit store is not the one committed")

    def _execute(self, query: str, values: Parameters) -> list[Any]:
        """Run one statement, which is one transaction, on the writer's connection."""
        self._warned = False
        try:
            rows = self._db.cursor(binary=True).execute(query, values, prepare=True).fetchall()
        except psycopg.Error as error:
            raise failure(error) from None
        if self._warned:
            # "canceling wait for synchronous replication": stored here, and perhaps not there.
            raise ConnectionLostError("a commit was not confirmed")
        return rows

    def _connect(self) -> psycopg.Connection:
        db = self._database.connect()
        db.add_notice_handler(self._notice)
        return db

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        self._warned |= notice.severity_nonlocalized == "WARNING"

    def _begin(self, wait: float) -> tuple[int, int, Head]:
        """Take over from whoever wrote before, for good."""
        ends = time.monotonic() + wait
        while not self._locked():
            if time.monotonic() >= ends:
                raise StartupError(f"another audit service writes the log {self._name}")
            time.sleep(_PAUSE_SECONDS)
        ((log, epoch, size, root),) = self._execute(_BEGIN, (self._name, self._token, EMPTY_ROOT))
        return log, epoch, Head(size, root)

    def _regain(self, ends: float) -> None:
        """Become the writer again after the connection was lost; raise StoreBrokenError.

        Only when nobody else has begun to write since: the token tells. The lock may still be with
        the session that was lost; the epoch is what counts, and `maintain` asks for it again.
        """
        pause = _PAUSE_SECONDS
        while True:
            try:
                self._db.close()
                self._db = self._connect()
                rows = self._execute(_REGAIN, (self._log, self._token))
                if not rows:
                    raise _taken_over()
                ((self._epoch, size, root),) = rows
                self._head = Head(size, root)
                self._locked()
            except (ConnectionLostError, StoreFullError) as error:
                # A full disk answers this statement, and says nothing of the one that was lost.
                if time.monotonic() + pause >= ends:
                    raise StoreBrokenError(f"the audit database failed: {error}") from None
            else:
                self._database.moved()
                return
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _locked(self) -> bool:
        self._has_lock = False
        ((held,),) = self._execute("SELECT pg_try_advisory_lock(%s)", (self._lock_key,))
        self._has_lock = bool(held)
        return self._has_lock


def _lock_key(schema: str, name: str) -> int:
    """Return the key of a log's advisory lock: deployments in one database do not meet."""
    digest = sha256(f"sealward/audit-log-lock/v1\n{schema}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _not_opened(name: str, error: StoreError) -> StartupError:
    return StartupError(f"the audit store {name} cannot be opened: {error}")


def _sealed() -> StoreBrokenError:
    return StoreBrokenError("this audit log is sealed: nothing of it changes")


def _taken_over() -> StoreBrokenError:
    return StoreBrokenError("another audit service has taken over this log")
