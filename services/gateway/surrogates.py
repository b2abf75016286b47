"""Surrogates of projects: codes for people in de-identified exports, and the way back from them.

A code is drawn at random and derived from nothing (45 CFR 164.514(c)); what it stands for is sealed
beside it, for its project and code alone. An identifier that comes again is found by a keyed mark,
which never leaves the file. Another project has other codes. Dropping a project destroys its rows:
then nobody leads its codes back.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sealward.kit.errors import SealwardError
from sealward.kit.keysclient import BranchKey, KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from services.gateway.database import opening
from services.gateway.keyedfile import KeyedFile

CONTEXT = EncryptionContext("default", "user", "deid")
KINDS = ("patient", "actor")
MOST_ITEMS = 2000
_PLACE = "deid"
_MARK_KEY = "mark-key"
_PROJECT = re.compile(r"[a-z][a-z0-9-]{0,31}")
_CODE = re.compile(r"[0-9a-f]{16}")
_IDENTIFIER = re.compile(r"[\x21-\x7e]{1,256}")
_EVENT_ID_BYTES = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS key (
  id INTEGER PRIMARY KEY CHECK (id = 1), wrapped BLOB NOT NULL, mark BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS project (
  name TEXT PRIMARY KEY, created INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS surrogate (
  project TEXT NOT NULL, mark BLOB NOT NULL, code TEXT NOT NULL, sealed BLOB NOT NULL,
  PRIMARY KEY (project, mark), UNIQUE (project, code)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Item:
    """What a code stands for. `event_id` is 16 bytes, of an event that has it."""

    kind: str
    identifier: str
    event_id: bytes


@dataclass(frozen=True, slots=True)
class Project:
    """A project, since when (epoch seconds), and how many codes it has."""

    name: str
    created: int
    codes: int


class Surrogates(KeyedFile):
    """SQLite, committed to the disk before anybody is told. Thread-safe.

    Sealing and opening raise KEYS_UNAVAILABLE and SEAL_BROKEN.
    """

    def __init__(self, path: Path, ring: KeyRing) -> None:
        """Open or make the file; raise StartupError."""
        with opening(path, "the file of surrogates") as db:
            # What was dropped is not to be found in free pages.
            db.execute("PRAGMA secure_delete=ON")
            db.executescript(_SCHEMA)
        super().__init__(db, ring, CONTEXT, _PLACE)

    def projects(self) -> list[Project]:
        """Return the projects by name."""
        with self._lock:
            rows = self._db.execute(
                "SELECT name, created, (SELECT count(*) FROM surrogate WHERE project = name)"
                " FROM project ORDER BY name"
            ).fetchall()
        return [Project(*row) for row in rows]

    def codes(self, project: str, items: Sequence[Item]) -> list[str]:
        """Return the codes of items in their order; draw those that the project does not have.

        Makes the project where there is none. Raises FIELD_INVALID.
        """
        _check(project, items)
        with self._lock:
            key, mark_key = self._branch_key(), self._mark_key()
            found: list[str] = []
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(
                    "INSERT OR IGNORE INTO project VALUES (?, ?)", (project, int(time.time()))
                )
                for item in items:
                    text = f"{project}\n{item.kind}\n{item.identifier}"
                    mark = hmac.digest(mark_key, text.encode(), hashlib.sha256)
                    row = self._db.execute(
                        "SELECT code FROM surrogate WHERE project = ? AND mark = ?",
                        (project, mark),
                    ).fetchone()
                    found.append(row[0] if row else self._draw(key, project, mark, item))
        return found

    def open(self, project: str, code: str) -> Item:
        """Return what a code stands for; raise NOT_FOUND."""
        with self._lock:
            row = (
                self._db.execute(
                    "SELECT sealed FROM surrogate WHERE project = ? AND code = ?", (project, code)
                ).fetchone()
                if _CODE.fullmatch(code)
                else None
            )
        if row is None:
            raise SealwardError(Reason.NOT_FOUND, "the project has no such code", field="code")
        try:
            kind, identifier, event_id = json.loads(
                self._branch_key().open(row[0], f"deid/{project}/{code}")
            )
            return Item(str(kind), str(identifier), bytes.fromhex(event_id))
        except (ValueError, TypeError, RecursionError):
            raise SealwardError(Reason.SEAL_BROKEN, "the code's entry cannot be read") from None

    def drop(self, project: str) -> int:
        """Destroy a project with all of its codes; return how many. Raises NOT_FOUND."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            done = self._db.execute("DELETE FROM project WHERE name = ?", (project,))
            if done.rowcount != 1:
                raise SealwardError(Reason.NOT_FOUND, "there is no such project", field="project")
            codes = self._db.execute("DELETE FROM surrogate WHERE project = ?", (project,)).rowcount
        with self._lock:
            # Nor in the log of writes.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return codes

    def _draw(self, key: BranchKey, project: str, mark: bytes, item: Item) -> str:
        while True:
            code = secrets.token_hex(8)
            taken = self._db.execute(
                "SELECT 1 FROM surrogate WHERE project = ? AND code = ?", (project, code)
            ).fetchone()
            if taken is None:
                break
        value = json.dumps([item.kind, item.identifier, item.event_id.hex()]).encode()
        sealed = key.seal(value, f"deid/{project}/{code}")
        self._db.execute("INSERT INTO surrogate VALUES (?, ?, ?, ?)", (project, mark, code, sealed))
        return code

    def _mark_key(self) -> bytes:
        """Return the key of the marks; it lies sealed in the file and is held for one call."""
        key = self._branch_key()
        row = self._db.execute("SELECT mark FROM key").fetchone()
        if row[0] is not None:
            return key.open(row[0], f"deid/{_MARK_KEY}")
        drawn = secrets.token_bytes(32)
        self._db.execute("UPDATE key SET mark = ?", (key.seal(drawn, f"deid/{_MARK_KEY}"),))
        return drawn


def _check(project: str, items: Sequence[Item]) -> None:
    if not _PROJECT.fullmatch(project):
        raise _invalid("project", "a project has 1 to 32 of a-z, 0-9, dash; begins with a letter")
    if len(items) > MOST_ITEMS:
        raise _invalid("items", f"at most {MOST_ITEMS} at a time")
    for item in items:
        if item.kind not in KINDS:
            raise _invalid("items", f"a kind is one of {', '.join(KINDS)}")
        if not _IDENTIFIER.fullmatch(item.identifier) or len(item.event_id) != _EVENT_ID_BYTES:
            raise _invalid("items", "an item has an identifier and an event id of 16 bytes")


def _invalid(field: str, message: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, message, field=field)
