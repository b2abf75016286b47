"""The embedded store of versions 1 to 3, which kept the entries in SQLite too: to read and to end.

Archives are read-only and stay what they are. Any other such store is made a new one when it is
opened (migration.py). Nothing is appended here.
"""

from __future__ import annotations

from collections.abc import Sequence

from sealward.kit.errors import StartupError
from sealward.tlog.merkle import HASH_SIZE, leaf_hash
from services.audit.framing import framed, unframed
from services.audit.sqlite_file import (
    APPLICATION_ID,
    COUNTING,
    FIND,
    NUMBERS,
    SqliteFile,
)
from services.audit.store import EventKey, Head, StoreBrokenError

VERSION = 3
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


class SqliteStore(SqliteFile):
    """A LogStore in one file that grows no more. See store.py for the contract of each method."""

    def _prepare(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version not in (1, VERSION):
            raise StartupError(f"the audit store {self._path} is of another version ({version})")
        if version != VERSION:
            self._writer.create_function("leaf_hash", 1, leaf_hash, deterministic=True)
            self._writer.create_function(
                "framed", 1, lambda leaf: framed((leaf,)), deterministic=True
            )
            self._writer.executescript(
                f"BEGIN IMMEDIATE; {_FROM_1} PRAGMA user_version={VERSION};"
                f" PRAGMA application_id={APPLICATION_ID}; COMMIT;"
            )
        self._writer.executescript(COUNTING)
        self._writer.executemany("INSERT INTO numbers VALUES (?)", [(i,) for i in range(NUMBERS)])

    def begin(self, first: int, leaves: Sequence[bytes]) -> None:
        """See LogStore."""

    def commit(
        self,
        first: int,  # noqa: ARG002
        leaves: Sequence[bytes],  # noqa: ARG002
        hashes: Sequence[bytes],  # noqa: ARG002
        keys: Sequence[EventKey],  # noqa: ARG002
        head: Head,  # noqa: ARG002
    ) -> None:
        """See LogStore: it fails."""
        raise StoreBrokenError("a store of an earlier version takes no entries")

    def head(self) -> Head | None:
        """See LogStore."""
        row = self._read("SELECT size, root FROM head WHERE id = 1")
        return Head(row[0][0], row[0][1]) if row else None

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """See LogStore."""
        found: dict[bytes, tuple[int, bytes]] = {}
        for start in range(0, len(event_ids), NUMBERS):
            some = event_ids[start : start + NUMBERS]
            # What a commit needs to know does not wait behind a long query.
            with self._writing() as db:
                rows = db.execute(FIND, (b"".join(some), len(some))).fetchall()
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

    def framed(self, start: int, end: int) -> bytes:
        """See LogStore."""
        return framed(self.leaves(start, end))

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
