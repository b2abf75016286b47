"""The registered clients: SQLite, committed to the disk before anybody is told.

As with users, nobody is ever deleted: neither an id nor a name comes to mean somebody else.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.database import opening
from services.gateway.ended import ENDED, EndedSessions
from services.gateway.jwks import JwksError, read_jwks
from services.gateway.users import ROLES
from services.gateway.workloads.assertion import ALGORITHMS

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_ROLES = tuple(role for role in ROLES if role != "break-glass")
"""Breaking the glass is a person's."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS client (
  client_id  TEXT PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,
  roles      TEXT NOT NULL,
  keys       TEXT NOT NULL,
  disabled   INTEGER NOT NULL DEFAULT 0,
  created    INTEGER NOT NULL,
  generation INTEGER NOT NULL DEFAULT 0,
  last_used  INTEGER NOT NULL DEFAULT 0
) STRICT;
"""
_COLUMNS = "client_id, name, roles, keys, disabled, created, generation, last_used"


@dataclass(frozen=True, slots=True)
class Client:
    """A program that may log in with one of `keys` (public JWKs). Times are epoch seconds.

    `client_id` is immutable, `name` what its certificate and its assertions say. `generation` rises
    when all of its sessions end. `last_used` is 0 before the first token.
    """

    client_id: str
    name: str
    roles: tuple[str, ...]
    keys: tuple[dict[str, str], ...]
    disabled: bool
    created: int
    generation: int
    last_used: int


class ClientDirectory(EndedSessions):
    """The clients of this deployment. Thread-safe."""

    _TABLE, _ID = "client", "client_id"

    def __init__(self, path: Path) -> None:
        """Open or make the file; raise StartupError."""
        self._lock = threading.Lock()
        with opening(path, "the file of clients") as self._db:
            self._db.executescript(_SCHEMA)
            self._db.execute(ENDED)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def register(self, name: str, roles: Sequence[str], jwks: bytes) -> Client:
        """Add a client; raise FIELD_INVALID or ALREADY_EXISTS."""
        if not _NAME.fullmatch(name):
            raise SealwardError(
                Reason.FIELD_INVALID,
                "a client's name has 1 to 64 of a-z, 0-9, dot, dash, underscore; starts with a "
                "letter",
                field="client",
            )
        if not roles or not set(roles) <= set(_ROLES) or len(set(roles)) != len(roles):
            raise SealwardError(
                Reason.FIELD_INVALID, f"roles are of {', '.join(_ROLES)}, each once", field="roles"
            )
        row = (
            *(f"client-{secrets.token_hex(16)}", name, json.dumps(sorted(roles))),
            *(json.dumps(_keys(jwks)), 0, int(time.time()), 0, 0),
        )
        try:
            with self._lock:
                self._db.execute(
                    f"INSERT INTO client ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                    row,
                )
        except sqlite3.IntegrityError:
            raise SealwardError(
                Reason.ALREADY_EXISTS, "there is a client of this name", field="client"
            ) from None
        return _client(row)

    def get(self, name: str) -> Client | None:
        """Return a client by name."""
        with self._lock:
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM client WHERE name = ?",  # noqa: S608
                (name,),
            ).fetchone()
        return None if row is None else _client(row)

    def all(self) -> list[Client]:
        """Return every client, sorted by name."""
        with self._lock:
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM client ORDER BY name").fetchall()  # noqa: S608
        return [_client(row) for row in rows]

    def rotate(self, name: str, jwks: bytes) -> Client:
        """Replace a client's keys; raise FIELD_INVALID or NOT_FOUND."""
        keys = json.dumps(_keys(jwks))
        with self._lock:
            self._db.execute("UPDATE client SET keys = ? WHERE name = ?", (keys, name))
        return self._known(name)

    def disable(self, name: str) -> Client:
        """Let a client log in no more; raise NOT_FOUND. Ending the sessions is the caller's."""
        with self._lock:
            self._db.execute("UPDATE client SET disabled = 1 WHERE name = ?", (name,))
        return self._known(name)

    def used(self, client_id: str, when: int) -> None:
        """Note when a client last got a token."""
        with self._lock:
            self._db.execute(
                "UPDATE client SET last_used = ? WHERE client_id = ?", (when, client_id)
            )

    def _known(self, name: str) -> Client:
        found = self.get(name)
        if found is None:
            raise SealwardError(Reason.NOT_FOUND, "there is no such client", field="client")
        return found

    # --- sessions.Ledger, for the sessions of clients -----------------------------------------

    def owns(self, user_id: str) -> bool:
        """Whether an id is of a client, and not of a person."""
        return user_id.startswith("client-")


def _keys(jwks: bytes) -> list[dict[str, str]]:
    try:
        return read_jwks(jwks, ALGORITHMS, strict=True)
    except JwksError as error:
        raise SealwardError(Reason.FIELD_INVALID, f"the keys: {error}", field="jwks") from None


def _client(row: Sequence[object]) -> Client:
    client_id, name, roles, keys, disabled, created, generation, last_used = row
    return Client(
        str(client_id), str(name), tuple(json.loads(str(roles))), tuple(json.loads(str(keys))),
        bool(disabled), int(str(created)), int(str(generation)), int(str(last_used)),
    )  # fmt: skip
