"""The index in PostgreSQL, beside the log in the same schema.

Its commits do not wait for the disk: what a crash or a failover takes away is read from the log
again. For the same reason its size stands in the database and is compared with every step, so that
two writers, or one that remembers more than the server does, leave no hole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import psycopg

from sealward.kit.errors import StartupError
from services.audit.index import IndexFailedError, Query, Row, TableDigest
from services.audit.index_sql import where
from services.audit.postgres_database import Database
from services.audit.store import StoreError

T = TypeVar("T")

_VERSION = 3
_COLUMNS = ", ".join(Row._fields)
_BREAK_GLASS = Row._fields.index("break_glass")
_BEGIN = """
INSERT INTO index_state (log, version, origin, size)
SELECT id, %(version)s, %(origin)s, 0 FROM logs WHERE name = %(name)s
ON CONFLICT (log) DO UPDATE SET version = index_state.version
RETURNING log, version, origin, size
"""
_GROW = "UPDATE index_state SET size = %s WHERE log = %s AND size = %s"
_COPY = f"COPY events (log, idx, {_COLUMNS}) FROM STDIN"


class PostgresIndex:
    """An Index in PostgreSQL. See index.py for the contract of each method."""

    def __init__(self, database: Database, name: str, origin: str) -> None:
        """Open the index of the log `origin`, stored as `name`, or begin it; raise StartupError."""
        self._database = database
        self._origin = origin
        self._lock = threading.Lock()
        values = {"version": _VERSION, "origin": origin, "name": name}
        try:
            rows = database.run(lambda db: db.execute(_BEGIN, values).fetchall())
            if not rows:
                raise StartupError(f"the audit database has no log {name} to index")
            self._log, version, found, size = rows[0]
            self._size = int(size)
            if (version, found) != (_VERSION, origin):
                self.clear()
        except (StoreError, IndexFailedError) as error:
            raise StartupError(f"the audit index {name} cannot be opened: {error}") from None

    @property
    def size(self) -> int:
        """See Index."""
        return self._size

    def add(self, first: int, rows: Sequence[Row | None]) -> None:
        """See Index."""
        size = first + len(rows)
        values = [
            (self._log, at, *_stored(row)) for at, row in enumerate(rows, first) if row is not None
        ]

        def action(db: psycopg.Connection) -> bool:
            with _quick(db):
                if db.execute(_GROW, (size, self._log, first)).rowcount != 1:
                    return False
                with db.cursor().copy(_COPY) as copy:
                    for row in values:
                        copy.write_row(row)
            return True

        with self._lock:
            if first != self._size:
                raise IndexFailedError("rows do not follow the last ones")
            if not self._run(action):
                # Lost in a crash of the server, or done by an attempt whose answer was lost.
                self._size = self._stored_size()
                if self._size != size:
                    raise IndexFailedError("the audit index is not what was last written")
            self._size = size

    def rows(self, query: Query) -> list[tuple[int, Row]]:
        """See Index."""
        clause, values = where(query, "%s")
        order = "ASC" if query.oldest_first else "DESC"
        clause = f"{clause} AND log = %s" if clause else "WHERE log = %s"
        sql = f"SELECT idx, {_COLUMNS} FROM events {clause} ORDER BY idx {order} LIMIT %s"  # noqa: S608
        parameters = [_escaped(v) if isinstance(v, str) else v for v in values]
        return self._read(sql, (*parameters, self._log, query.limit))

    def row(self, index: int) -> Row | None:
        """See Index."""
        sql = f"SELECT idx, {_COLUMNS} FROM events WHERE log = %s AND idx = %s"  # noqa: S608
        found = self._read(sql, (self._log, index))
        return found[0][1] if found else None

    def clear(self) -> None:
        """See Index."""

        def action(db: psycopg.Connection) -> None:
            with _quick(db):
                db.execute(
                    "UPDATE index_state SET size = 0, version = %s, origin = %s WHERE log = %s",
                    (_VERSION, self._origin, self._log),
                )
                db.execute("DELETE FROM events WHERE log = %s", (self._log,))

        with self._lock:
            self._run(action)
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
        """See Index: the server does it."""

    def close(self) -> None:
        """See Index: the connections are the database's."""

    def _stored_size(self) -> int:
        sql = "SELECT size FROM index_state WHERE log = %s"
        rows = self._run(lambda db: db.execute(sql, (self._log,)).fetchall())
        return int(rows[0][0]) if rows else 0

    def _read(self, sql: str, values: Sequence[object]) -> list[tuple[int, Row]]:
        # Planned anew for its values: which index serves depends on them.
        found = self._run(
            lambda db: db.cursor(binary=True).execute(sql, values, prepare=False).fetchall()
        )
        return [(row[0], _read_row(row[1:])) for row in found]

    def _run(self, action: Callable[[psycopg.Connection], T]) -> T:
        try:
            return self._database.run(action)
        except StoreError as error:
            raise IndexFailedError(f"the audit index failed: {error}") from None


@contextmanager
def _quick(db: psycopg.Connection) -> Iterator[None]:
    """Begin a transaction whose commit does not wait for the disk."""
    with db.transaction():
        db.execute("SET LOCAL synchronous_commit = off")
        yield


def _stored(row: Row) -> list[object]:
    values: list[object] = [_escaped(v) if isinstance(v, str) else v for v in row]
    values[_BREAK_GLASS] = bool(row.break_glass)
    return values


def _read_row(values: Sequence[object]) -> Row:
    found = [_unescaped(v) if isinstance(v, str) else v for v in values]
    found[_BREAK_GLASS] = int(bool(found[_BREAK_GLASS]))
    return Row(*found)  # type: ignore[arg-type]


def _escaped(text: str) -> str:
    """PostgreSQL stores no NUL in text, and a span may hold one."""
    return text.replace("\\", "\\\\").replace("\0", "\\0")


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    parts = [part.replace("\\0", "\0") for part in text.split("\\\\")]
    return "\\".join(parts)
