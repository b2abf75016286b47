"""Makes an embedded store of version 1 to 3, which had its entries in SQLite, one of version 4.

Killed at any moment, it is either the old store with a part of the new file beside it, from which
the next start goes on, or the new one. Each entry is hashed again: a store whose entries do not
give the tree head that was committed stays what it is, and the start ends.
"""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

from sealward.kit.errors import StartupError
from sealward.tlog.merkle import EMPTY_ROOT, leaf_hashes
from sealward.tlog.tiledtree import TiledTree
from services.audit.entryfile import NOTHING, DamagedError, EntryFile, adopt_file
from services.audit.entryrecord import ID_BYTES, IDENTITY_BYTES, Record, record_leaves
from services.audit.finder import TABLES, VERSION
from services.audit.sqlite_file import cannot_open
from services.audit.sqlite_store import SqliteStore
from services.audit.store import Head, StoreError

_BATCH = 256


def version_of(path: Path) -> int:
    """Return the version of a `log.db`, 0 for none; raise StartupError."""
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(path, timeout=5.0)) as db:
            return int(db.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        raise cannot_open(path, error) from None


def migrate(path: Path, entries: Path) -> None:
    """Move the entries of the `log.db` at `path` to a file of their own; raise StartupError."""
    temporary = entries.with_name(f".{entries.name}.moving")
    try:
        with closing(SqliteStore(path)) as old:
            head = old.head() or Head(0, EMPTY_ROOT)
            file = _begun(temporary)
            try:
                _copy(old, file, head)
                mark, places, identity = file.mark, file.places(0), file.identity
            finally:
                file.close()
        adopt_file(temporary, entries)
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA temp_store=MEMORY")
            db.executescript(f"BEGIN IMMEDIATE; {TABLES} DROP TABLE batches; DROP TABLE head;")
            db.execute("INSERT INTO mark VALUES (1, ?, ?, ?, ?, ?)", (identity, *mark))
            db.executemany("INSERT INTO places VALUES (?, ?)", places)
            db.execute(f"PRAGMA user_version={VERSION}")
            db.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise cannot_open(path, error) from None
    except StoreError as error:
        raise StartupError(f"the audit store {path} cannot be opened: {error}") from None


def _begun(temporary: Path) -> EntryFile:
    if temporary.exists():
        try:
            return EntryFile(temporary)
        except DamagedError:
            pass
    EntryFile.create(temporary, secrets.token_bytes(IDENTITY_BYTES))
    return EntryFile(temporary)


def _copy(old: SqliteStore, file: EntryFile, head: Head) -> None:
    tree = TiledTree(lambda tile: file.hashes(tile * _BATCH, (tile + 1) * _BATCH))

    def seen(record: Record) -> None:
        tree.append(leaf_hashes(record_leaves(record)))

    try:
        file.resume(NOTHING, (), seen)
    except DamagedError as error:
        raise StartupError(f"{error}; it is a copy and may be deleted") from None
    for start in range(tree.size, head.size, _BATCH):
        leaves = old.leaves(start, min(start + _BATCH, head.size))
        hashes = leaf_hashes(leaves)
        # An entry begins with its version and the id of its event.
        ids = [leaf[1 : 1 + ID_BYTES] for leaf in leaves]
        found = old.find(ids)
        prints = []
        for index, event_id in enumerate(ids, start):
            place, fingerprint = found.get(event_id, (-1, b""))
            if place != index:
                raise _changed(head)
            prints.append(fingerprint)
        growth = tree.grown(hashes)
        file.commit(start, leaves, hashes, b"".join(ids), b"".join(prints), growth.root)
        tree.adopt(growth)
    if tree.size != head.size or tree.root() != head.root:
        raise _changed(head)


def _changed(head: Head) -> StartupError:
    return StartupError(
        f"the audit store was changed: its {head.size} entries do not give the committed root"
    )
