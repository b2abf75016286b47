"""A file of SQLite with named values in it: what the embedded stores of every version share.

WAL mode with synchronous=FULL, so that a named value is durable when `put` returns. The writer has
a connection of its own; reads go through others and see the last commit.
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
from services.audit.store import StoreBrokenError, StoreFullError

APPLICATION_ID = 0x5EA10A1D
# Lists of ids are taken apart by joining with this table: one value instead of hundreds.
NUMBERS = 256
COUNTING = "CREATE TEMP TABLE numbers (i INTEGER PRIMARY KEY);"
FIND = """
SELECT ids.event_id, ids.idx, ids.fingerprint
  FROM numbers CROSS JOIN ids ON ids.event_id = substr(?1, i * 16 + 1, 16) WHERE i < ?2
"""
# Pages in the write-ahead log at which a commit moves them itself. maintain() comes long before;
# this is the bound when reads never leave it a gap.
_AUTOCHECKPOINT_PAGES = 65_536
_MAINTAIN_BYTES = 4 << 20
# Connections that read: the start's comparison of all tiles holds up no question meanwhile.
_READERS = 3
_WRITER_KIB, _READER_KIB = 16_384, 4096


class SqliteFile:
    """One file (0600). See store.py for the contract of each method."""

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
            self._writer = self.connect(_WRITER_KIB)
            self._prepare()
            for _ in range(self._reading):
                reader = self.connect(_READER_KIB)
                reader.execute("PRAGMA query_only=ON")
                self._readers.put(reader)
            self._keeper = self.connect(_READER_KIB)
        except (OSError, sqlite3.Error) as error:
            raise cannot_open(path, error) from None

    def connect(self, cache_kib: int) -> sqlite3.Connection:
        """Return another connection; raise sqlite3.Error."""
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
        """Make the tables, or those of another version theirs; raise StartupError."""
        raise NotImplementedError

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
                raise failure(error) from None
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
                raise failure(error) from None
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
            if not isinstance(meant := failure(error), StoreFullError):
                raise meant from None

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
            raise failure(error) from None
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
                meant = failure(error)
                if isinstance(meant, StoreFullError) and db.in_transaction:
                    try:
                        db.execute("ROLLBACK")
                    except sqlite3.Error:
                        meant = StoreBrokenError("a transaction could not be undone")
                raise meant from None


def _pattern(prefix: str) -> str:
    return prefix.replace("_", "\\_").replace("%", "\\%") + "%"


def failure(error: sqlite3.Error) -> StoreFullError | StoreBrokenError:
    """Return what an error of SQLite means for the log."""
    name = getattr(error, "sqlite_errorname", "")
    # The index of the write-ahead log (shared memory) reports a full disk under its own name.
    if name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"):
        return StoreFullError("no space for the audit log")
    return StoreBrokenError(f"the audit store failed ({name or type(error).__name__})")


def cannot_open(path: Path, error: Exception) -> StartupError:
    """Return the error of a start that ends here."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StartupError(f"the audit store {path} cannot be opened ({name})")
