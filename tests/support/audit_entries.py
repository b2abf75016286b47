"""What tests do to the files of a closed embedded store."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from services.audit.embedded_store import EmbeddedStore
from services.audit.entryrecord import (
    HEAD_BYTES,
    START_BYTES,
    RecordHead,
    parse_head,
    parse_start,
)
from services.audit.framing import framed

VERSION_1 = """
CREATE TABLE entries (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL);
CREATE TABLE events (
  idx INTEGER PRIMARY KEY, event_id BLOB NOT NULL, fingerprint BLOB NOT NULL,
  time INTEGER NOT NULL, type TEXT NOT NULL, outcome TEXT NOT NULL, code TEXT NOT NULL,
  reason TEXT NOT NULL, actor TEXT NOT NULL, model TEXT NOT NULL, purpose TEXT NOT NULL,
  patient TEXT NOT NULL
);
"""
_TO_3 = """
CREATE TABLE batches (
  first INTEGER PRIMARY KEY, count INTEGER NOT NULL, hashes BLOB NOT NULL, leaves BLOB NOT NULL
);
CREATE TABLE head (
  id INTEGER PRIMARY KEY CHECK (id = 1), size INTEGER NOT NULL, root BLOB NOT NULL
);
DROP TABLE places;
DROP TABLE mark;
DROP TABLE puts;
PRAGMA user_version=3;
"""


def records(entries: Path) -> list[tuple[int, RecordHead]]:
    """Return byte and head of each record in a file of entries."""
    data = entries.read_bytes()
    identity = parse_start(data[:START_BYTES])
    found = []
    at = START_BYTES
    while at < len(data):
        found.append((at, parse_head(identity, data[at : at + HEAD_BYTES])))
        at += found[-1][1].bytes
    return found


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def as_version_3(folder: Path, rows: int = 64) -> None:
    """Make a closed store what an earlier release would have written: all of it in log.db."""
    with closing(EmbeddedStore(folder / "log.db")) as store:
        head = store.head()
        leaves = store.leaves(0, head.size) if head else []
        hashes = store.hashes(0, len(leaves))
    with closing(sqlite3.connect(folder / "log.db")) as db:
        db.executescript(_TO_3)
        for at in range(0, len(leaves), rows):
            some = leaves[at : at + rows]
            db.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?)",
                (at, len(some), hashes[at * 32 : (at + len(some)) * 32], framed(some)),
            )
        if head:
            db.execute("INSERT INTO head VALUES (1, ?, ?)", (head.size, head.root))
        db.commit()
    (folder / "log.entries").unlink()


def as_version_1(folder: Path) -> None:
    """The same for the first release, which had a row for each entry."""
    with closing(EmbeddedStore(folder / "log.db")) as store:
        head = store.head()
        leaves = store.leaves(0, head.size) if head else []
    as_version_3(folder)
    with closing(sqlite3.connect(folder / "log.db")) as db:
        db.executescript(VERSION_1)
        db.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(leaves))
        db.execute(
            "INSERT INTO events SELECT idx, event_id, fingerprint, 0, '', '', '', '', '', '', '',"
            " '' FROM ids"
        )
        db.executescript("DROP TABLE ids; DROP TABLE batches; PRAGMA user_version=1;")
