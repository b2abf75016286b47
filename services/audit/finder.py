"""`log.db` of the embedded store: where an event is, and the log's named values.

The named values (origin, wrapped keys) are the truth and durable when `put` returns. The rest is
derived from `log.entries` and may lag behind it, also over a crash: the ids of events, where some
records begin, and up to which record both are there. It is brought up to date in large steps and
without an fsync of its own.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from sealward.kit.errors import StartupError
from services.audit.entryfile import NOTHING, Mark
from services.audit.entryrecord import ID_BYTES
from services.audit.sqlite_file import (
    APPLICATION_ID,
    COUNTING,
    FIND,
    NUMBERS,
    SqliteFile,
    cannot_open,
    failure,
)
from services.audit.store import StoreBrokenError, StoreError

VERSION = 4
TABLES = """
CREATE TABLE places (first INTEGER PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE mark (
  id INTEGER PRIMARY KEY CHECK (id = 1), identity BLOB NOT NULL,
  at INTEGER NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE puts (id INTEGER PRIMARY KEY CHECK (id = 1), count INTEGER NOT NULL);
INSERT INTO puts VALUES (1, 0);
"""
_SCHEMA = f"""
CREATE TABLE ids (
  event_id BLOB PRIMARY KEY, idx INTEGER NOT NULL, fingerprint BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
{TABLES}
"""
# Ids that go in as one statement: the interpreter's lock is given up for as long.
_STATEMENT = 4096
_FILE = """
INSERT INTO ids (event_id, idx, fingerprint)
  SELECT substr(?1, i * 16 + 1, 16), ?2 + i, substr(?3, i * 16 + 1, 16)
  FROM numbers WHERE i < ?4
"""
_MARK = "UPDATE mark SET at = ?, size = ?, root = ?, crc = ?"
_CACHE_KIB = 4096
# What an earlier version left free in the file is given back.
_FREE_PAGES = 4096


class Finder(SqliteFile):
    """Finds events, and keeps named values. See store.py for the methods of a LogStore."""

    def __init__(self, path: Path, *, sealed: bool = False) -> None:
        """Open or create the file; raise StartupError with one clear line."""
        self._seek_lock = threading.Lock()
        super().__init__(path, sealed=sealed)
        try:
            self._seeker = self._counting(NUMBERS)
            self._filler = self._counting(_STATEMENT)
            if not sealed:
                self._filler.execute("PRAGMA synchronous=NORMAL")
            rows = self._filler.execute("SELECT identity, at, size, root, crc FROM mark").fetchall()
            self.identity: bytes | None = rows[0][0] if rows else None
            """Of the file of entries that this belongs to; None while there is none."""
            self.mark = Mark(*rows[0][1:]) if rows else NOTHING
            """Up to where it is up to date."""
            found = self._filler.execute("SELECT first, at FROM places ORDER BY first")
            self.places: list[tuple[int, int]] = found.fetchall()
            """Where records begin, as EntryFile.resume wants it: what was there at the start."""
            self.puts: int = self._filler.execute("SELECT count FROM puts").fetchone()[0]
            """How often named values were put: part of every record (entryrecord.py)."""
            # No id that is greater is here: new ones mostly are, and are not looked for.
            self._greatest: bytes = (
                self._filler.execute("SELECT max(event_id) FROM ids").fetchone()[0] or b""
            )
        except (sqlite3.Error, TypeError) as error:
            raise cannot_open(path, error) from None

    def _counting(self, numbers: int) -> sqlite3.Connection:
        db = self.connect(_CACHE_KIB)
        db.executescript(COUNTING)
        db.execute("BEGIN")
        db.executemany("INSERT INTO numbers VALUES (?)", [(i,) for i in range(numbers)])
        db.execute("COMMIT")
        return db

    def _prepare(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise StartupError(f"the audit store {self._path} is of another version ({version})")
        if version != VERSION:
            self._writer.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={VERSION};"
                f" PRAGMA application_id={APPLICATION_ID}; COMMIT;"
            )
        if (
            not self._sealed
            and self._writer.execute("PRAGMA freelist_count").fetchone()[0] > _FREE_PAGES
        ):
            self._writer.execute("VACUUM")

    def belong(self, identity: bytes) -> None:
        """Belong to a file of entries that is new; raise StoreError."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO mark (id, identity, at, size, root, crc) VALUES (1, ?, ?, ?, ?, ?)",
                (identity, *NOTHING),
            )
        self.identity = identity

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:
        """See LogStore."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", list(values))
            db.execute("UPDATE puts SET count = count + 1")
            (count,) = db.execute("SELECT count FROM puts").fetchone()
        # Only now: it says in records that these values are on the disk.
        self.puts = max(self.puts, count)

    def file(
        self,
        first: int,
        ids: Sequence[bytes],
        prints: bytes,
        places: Sequence[tuple[int, int]],
        mark: Mark,
    ) -> None:
        """Take up the ids and fingerprints of the entries from `first` to a mark, or nothing.

        Raise StoreError.
        """
        joined = b"".join(ids)
        with self._write_lock:
            db = self._filler
            try:
                db.execute("BEGIN IMMEDIATE")
                for at in range(0, len(ids), _STATEMENT):
                    some = slice(at * ID_BYTES, (at + _STATEMENT) * ID_BYTES)
                    count = min(_STATEMENT, len(ids) - at)
                    db.execute(_FILE, (joined[some], first + at, prints[some], count))
                db.executemany("INSERT INTO places (first, at) VALUES (?, ?)", places)
                db.execute(_MARK, mark)
                db.execute("COMMIT")
            except sqlite3.Error as error:
                meant: StoreError = failure(error)
                if db.in_transaction:
                    try:
                        db.execute("ROLLBACK")
                    except sqlite3.Error:
                        meant = StoreBrokenError("a transaction could not be undone")
                raise meant from None
        self.mark = mark
        self._greatest = max(self._greatest, *ids)

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """See LogStore: those that were taken up."""
        found: dict[bytes, tuple[int, bytes]] = {}
        if not event_ids or min(event_ids) > self._greatest:
            return found
        for start in range(0, len(event_ids), NUMBERS):
            some = event_ids[start : start + NUMBERS]
            # What a commit needs to know waits neither behind a long query nor for a commit.
            with self._seek_lock:
                try:
                    rows = self._seeker.execute(FIND, (b"".join(some), len(some))).fetchall()
                except sqlite3.Error as error:
                    raise failure(error) from None
            found.update((row[0], (row[1], row[2])) for row in rows)
        return found

    def seal(self) -> None:
        """See LogStore."""
        self._close_own()
        super().seal()

    def close(self) -> None:
        """See LogStore."""
        self._close_own()
        super().close()

    def _close_own(self) -> None:
        with self._seek_lock:
            self._seeker.close()
        with self._write_lock:
            self._filler.close()
