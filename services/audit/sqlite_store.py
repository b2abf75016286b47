"""The embedded store: SQLite in WAL mode with synchronous=FULL, one transaction a batch.

Torn writes and recovery are SQLite's: a commit is one fsync of the write-ahead log, and a torn tail
of it is dropped on opening. The writer has a connection of its own; reads go through others and see
the last commit.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealward.kit.errors import StartupError
from sealward.tlog.merkle import HASH_SIZE, leaf_hash
from services.audit.framing import framed, unframed
from services.audit.store import EventKey, Head, StoreBrokenError, StoreFullError

_APPLICATION_ID = 0x5EA10A1D
_VERSION = 3
# A row is a batch or a part of one: the pages hold little but entries. The hashes come before the
# leaves, so that reading them leaves the long part alone.
_SCHEMA = """
CREATE TABLE batches (
  first INTEGER PRIMARY KEY, count INTEGER NOT NULL, hashes BLOB NOT NULL, leaves BLOB NOT NULL
);
CREATE TABLE ids (
  event_id BLOB PRIMARY KEY, idx INTEGER NOT NULL, fingerprint BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE head (
  id INTEGER PRIMARY KEY CHECK (id = 1), size INTEGER NOT NULL, root BLOB NOT NULL
);
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
# Version 1 had a row for each entry, and the rows of the index in here.
_FROM_1 = """
CREATE TABLE batches (
  first INTEGER PRIMARY KEY, count INTEGER NOT NULL, hashes BLOB NOT NULL, leaves BLOB NOT NULL
);
CREATE TABLE ids (
  event_id BLOB PRIMARY KEY, idx INTEGER NOT NULL, fingerprint BLOB NOT NULL
) WITHOUT ROWID;
INSERT INTO ids (event_id, idx, fingerprint) SELECT event_id, idx, fingerprint FROM events;
INSERT INTO batches (first, count, hashes, leaves)
  SELECT idx, 1, leaf_hash(leaf), framed(leaf) FROM entries;
DROP TABLE events;
DROP TABLE entries;
"""
# Entries in a row. Whoever asks for one entry reads the row that has it.
_ROW_ENTRIES = 64
# Lists of ids are taken apart by joining with this table: one value instead of hundreds.
_NUMBERS = 256
_COUNTING = "CREATE TEMP TABLE numbers (i INTEGER PRIMARY KEY);"
_FIND = """
SELECT ids.event_id, ids.idx, ids.fingerprint
  FROM numbers CROSS JOIN ids ON ids.event_id = substr(?1, i * 16 + 1, 16) WHERE i < ?2
"""
# A batch goes in as one statement, which is a transaction of its own. At each step of a statement
# the interpreter's lock is given up, and under load it takes milliseconds to get it back.
_APPENDING = """
CREATE TEMP VIEW appended (first, count, hashes, leaves, ids, prints, size, root) AS
  SELECT 0, 0, x'', x'', x'', x'', 0, x'';
CREATE TEMP TRIGGER append INSTEAD OF INSERT ON appended BEGIN
  INSERT INTO batches (first, count, hashes, leaves)
    VALUES (NEW.first, NEW.count, NEW.hashes, NEW.leaves);
  INSERT INTO ids (event_id, idx, fingerprint)
    SELECT substr(NEW.ids, i * 16 + 1, 16), NEW.first + i, substr(NEW.prints, i * 16 + 1, 16)
    FROM numbers WHERE i < NEW.count;
  INSERT INTO head (id, size, root) VALUES (1, NEW.size, NEW.root)
    ON CONFLICT (id) DO UPDATE SET size = NEW.size, root = NEW.root;
END;
"""
_APPEND = "INSERT INTO appended VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
# Pages in the write-ahead log at which a commit moves them itself. maintain() comes long before;
# this is the bound when reads never leave it a gap.
_AUTOCHECKPOINT_PAGES = 65_536
_MAINTAIN_BYTES = 4 << 20
# Connections that read: the start's comparison of all tiles holds up no question meanwhile.
_READERS = 3
_WRITER_KIB, _READER_KIB = 16_384, 4096


class SqliteStore:
    """A LogStore in one file (0600). See store.py for the contract of each method."""

    def __init__(self, path: Path, *, sealed: bool = False) -> None:
        """Open or create the file; raise StartupError with one clear line.

        `sealed`: the file is there, read-only, and nobody writes it.
        """
        self._path = path
        self._sealed = sealed
        self._write_lock = threading.Lock()
        self._keep_lock = threading.Lock()
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._reading = 1 if sealed else _READERS
        try:
            if not sealed:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._writer = self._connect(_WRITER_KIB)
            self._prepare()
            for _ in range(self._reading):
                reader = self._connect(_READER_KIB)
                reader.execute("PRAGMA query_only=ON")
                self._readers.put(reader)
            self._keeper = self._connect(_READER_KIB)
        except (OSError, sqlite3.Error) as error:
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            raise StartupError(f"the audit store {path} cannot be opened ({name})") from None

    def _connect(self, cache_kib: int) -> sqlite3.Connection:
        # One thread at a time uses it, whichever it is.
        if self._sealed:
            where = f"{self._path.absolute().as_uri()}?mode=ro&immutable=1"
            return sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False)
        db = sqlite3.connect(self._path, timeout=5.0, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA page_size=4096")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA wal_autocheckpoint={_AUTOCHECKPOINT_PAGES}")
        # Sorting and savepoints must leave nothing of the index in temporary files.
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute(f"PRAGMA cache_size=-{cache_kib}")
        return db

    def _prepare(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, 1, _VERSION):
            raise StartupError(f"the audit store {self._path} is of another version ({version})")
        if version != _VERSION:
            script = _FROM_1 if version else _SCHEMA
            self._writer.create_function("leaf_hash", 1, leaf_hash, deterministic=True)
            self._writer.create_function(
                "framed", 1, lambda leaf: framed((leaf,)), deterministic=True
            )
            self._writer.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA user_version={_VERSION};"
                f" PRAGMA application_id={_APPLICATION_ID}; COMMIT;"
            )
        self._writer.executescript(_COUNTING if self._sealed else _COUNTING + _APPENDING)
        self._writer.executemany("INSERT INTO numbers VALUES (?)", [(i,) for i in range(_NUMBERS)])

    def head(self) -> Head | None:
        """See LogStore."""
        row = self._read("SELECT size, root FROM head WHERE id = 1")
        return Head(row[0][0], row[0][1]) if row else None

    def commit(
        self,
        first: int,
        leaves: Sequence[bytes],
        hashes: Sequence[bytes],
        keys: Sequence[EventKey],
        head: Head,
    ) -> None:
        """See LogStore."""
        values: list[int | bytes] = []
        starts = range(0, len(leaves), _ROW_ENTRIES)
        for at in starts:
            some = slice(at, at + _ROW_ENTRIES)
            ids, prints = zip(*keys[some], strict=True)
            values += (
                first + at, len(ids), b"".join(hashes[some]), framed(leaves[some]),
                b"".join(ids), b"".join(prints), head.size, head.root,
            )  # fmt: skip
        with self._writing() as db:
            db.execute(_APPEND + ", (?, ?, ?, ?, ?, ?, ?, ?)" * (len(starts) - 1), values)

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """See LogStore."""
        found: dict[bytes, tuple[int, bytes]] = {}
        for start in range(0, len(event_ids), _NUMBERS):
            some = event_ids[start : start + _NUMBERS]
            # What a commit needs to know does not wait behind a long query.
            with self._writing() as db:
                rows = db.execute(_FIND, (b"".join(some), len(some))).fetchall()
            found.update((row[0], (row[1], row[2])) for row in rows)
        return found

    def leaves(self, start: int, end: int) -> list[bytes]:
        """See LogStore."""
        found: list[bytes] = []
        for first, count, joined in self._batches("leaves", start, end):
            low, high = max(start - first, 0), min(end - first, count)
            found += unframed(joined, high)[low:]
        if len(found) != end - start:
            raise StoreBrokenError("entries are missing from the store")
        return found

    def hashes(self, start: int, end: int) -> bytes:
        """See LogStore."""
        parts = []
        for first, count, joined in self._batches("hashes", start, end):
            low, high = max(start - first, 0), min(end - first, count)
            parts.append(joined[low * HASH_SIZE : high * HASH_SIZE])
        found = b"".join(parts)
        if len(found) != (end - start) * HASH_SIZE:
            raise StoreBrokenError("hashes are missing from the store")
        return found

    def _batches(self, column: str, start: int, end: int) -> list[tuple[int, int, bytes]]:
        if end <= start:
            return []
        return self._read(
            f"SELECT first, count, {column} FROM batches WHERE first < ?2 AND first >="  # noqa: S608
            " (SELECT max(first) FROM batches WHERE first <= ?1) ORDER BY first",
            (start, end),
        )

    def get(self, name: str) -> bytes | None:
        """See LogStore."""
        rows = self._read("SELECT value FROM meta WHERE name = ?", (name,))
        return bytes(rows[0][0]) if rows else None

    def names(self, prefix: str) -> list[str]:
        """See LogStore."""
        sql = "SELECT name FROM meta WHERE name LIKE ? ESCAPE '\\' ORDER BY name"
        return [row[0] for row in self._read(sql, (_pattern(prefix),))]

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:
        """See LogStore."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", list(values))

    def forget(self, prefix: str) -> int:
        """See LogStore. The pages are written over, and the file is made anew without them."""
        with self._transaction() as db:
            db.execute("PRAGMA secure_delete=ON")
            done = db.execute("DELETE FROM meta WHERE name LIKE ? ESCAPE '\\'", (_pattern(prefix),))
        with self._write_lock:
            try:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                # Copies that were left behind when pages were split go with this.
                self._writer.execute("VACUUM")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:
                raise _failure(error) from None
        return done.rowcount

    def seal(self) -> None:
        """See LogStore: everything goes into the one file, which needs no other beside it."""
        with self._keep_lock:
            self._keeper.close()
        self._close_readers()
        with self._write_lock:
            try:
                mode = self._writer.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
            except sqlite3.Error as error:
                raise _failure(error) from None
            finally:
                self._writer.close()
        if mode != "delete":
            raise StoreBrokenError("the audit store is open elsewhere")

    def maintain(self) -> None:
        """Move committed pages from the write-ahead log into the database file.

        PASSIVE: it waits for nobody and lets commits go on. A full disk is no error here, the
        pages stay where they are.
        """
        try:
            if Path(f"{self._path}-wal").stat().st_size < _MAINTAIN_BYTES:
                return
            with self._keep_lock:
                self._keeper.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except FileNotFoundError:
            return
        except sqlite3.Error as error:
            if not isinstance(failure := _failure(error), StoreFullError):
                raise failure from None

    def close(self) -> None:
        """See LogStore."""
        with self._keep_lock:
            self._keeper.close()
        self._close_readers()
        with self._write_lock:
            self._writer.close()

    def _read(self, sql: str, values: Sequence[str | int | bytes] = ()) -> list[Any]:
        db = self._readers.get()
        try:
            return db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _failure(error) from None
        finally:
            self._readers.put(db)

    def _close_readers(self) -> None:
        """Wait for those in use. Whoever reads afterwards finds them closed."""
        readers = [self._readers.get() for _ in range(self._reading)]
        for db in readers:
            db.close()
            self._readers.put(db)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            db = self._writer
            try:
                yield db
            except sqlite3.Error as error:
                failure = _failure(error)
                if isinstance(failure, StoreFullError) and db.in_transaction:
                    try:
                        db.execute("ROLLBACK")
                    except sqlite3.Error:
                        failure = StoreBrokenError("a transaction could not be undone")
                raise failure from None


def _pattern(prefix: str) -> str:
    return prefix.replace("_", "\\_").replace("%", "\\%") + "%"


def _failure(error: sqlite3.Error) -> StoreFullError | StoreBrokenError:
    name = getattr(error, "sqlite_errorname", "")
    # The index of the write-ahead log (shared memory) reports a full disk under its own name.
    if name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"):
        return StoreFullError("no space for the audit log")
    return StoreBrokenError(f"the audit store failed ({name or type(error).__name__})")
