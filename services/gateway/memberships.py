"""Parameters of people's memberships in roles: what makes one clinician's rights unlike another's.

A parameter has a name within a role, `service.duty` or `clinician.ward`. Policies read it as a tag
of the principal, annotations of policies as `$service.outputs`. It holds while a session has the
role, from the next call on: nothing has to be logged in anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.database import opening
from services.gateway.users import ROLES

Parameters = tuple[tuple[str, str], ...]
"""Pairs of `role.key` and value, sorted."""

MOST = 16
_KEY = re.compile(r"[a-z][a-z0-9_]{0,31}")
_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:,/-]{0,255}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS parameter (
  user_id TEXT NOT NULL, role TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (user_id, role, key)
) STRICT
"""
_CAPACITY = 4096


class Memberships:
    """The parameters of this deployment: SQLite, and all of them in memory. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; raise StartupError."""
        self._lock = threading.Lock()
        with opening(path, "the file of memberships") as self._db:
            self._db.execute(_SCHEMA)
            rows = self._db.execute("SELECT user_id, role, key, value FROM parameter").fetchall()
        self._of: dict[str, dict[str, dict[str, str]]] = {}
        for user_id, role, key, value in rows:
            self._of.setdefault(user_id, {}).setdefault(role, {})[key] = value
        self._known: dict[tuple[str, tuple[str, ...]], Parameters] = {}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def of(self, user_id: str, roles: tuple[str, ...]) -> Parameters:
        """Return the parameters of a user's memberships in these roles. No I/O: on the path."""
        if user_id not in self._of:
            return ()
        known = self._known.get((user_id, roles))
        if known is None:
            with self._lock:
                mine = self._of.get(user_id, {})
                known = tuple(
                    sorted(
                        (f"{role}.{key}", value)
                        for role in roles
                        for key, value in mine.get(role, {}).items()
                    )
                )
                if len(self._known) >= _CAPACITY:
                    self._known.clear()
                self._known[user_id, roles] = known
        return known

    def get(self, user_id: str, role: str) -> dict[str, str]:
        """Return the parameters of one membership."""
        with self._lock:
            return dict(self._of.get(user_id, {}).get(role, {}))

    def set(self, user_id: str, role: str, parameters: Mapping[str, str]) -> dict[str, str]:
        """Give a membership these parameters and no others; return those that it had.

        Raises FIELD_INVALID.
        """
        check_parameters(role, parameters)
        with self._lock:
            before = dict(self._of.get(user_id, {}).get(role, {}))
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(
                    "DELETE FROM parameter WHERE user_id = ? AND role = ?", (user_id, role)
                )
                self._db.executemany(
                    "INSERT INTO parameter VALUES (?, ?, ?, ?)",
                    [(user_id, role, key, value) for key, value in parameters.items()],
                )
            roles = {r: p for r, p in self._of.get(user_id, {}).items() if r != role}
            if parameters:
                roles[role] = dict(parameters)
            # Exchanged whole: who reads meanwhile sees the old parameters or the new ones.
            self._of = {u: r for u, r in self._of.items() if u != user_id}
            if roles:
                self._of = {**self._of, user_id: roles}
            self._known = {}
        return before


def check_parameters(role: str, parameters: Mapping[str, str]) -> None:
    """Raise FIELD_INVALID for a role or parameters that no membership has."""
    if role not in ROLES:
        raise _invalid("role", f"is one of {', '.join(ROLES)}")
    if len(parameters) > MOST:
        raise _invalid("parameters", f"are at most {MOST}")
    for key, value in parameters.items():
        if not _KEY.fullmatch(key):
            raise _invalid("parameters", "have names of 1 to 32 of a-z, 0-9, underscore")
        if not _VALUE.fullmatch(value):
            raise _invalid(
                "parameters", "have values of 1 to 256 letters, digits, spaces and ._:,/-"
            )


def digest(parameters: Mapping[str, str]) -> str:
    """SHA-256 of a membership's parameters as sorted JSON, hexadecimal: what a record names."""
    text = json.dumps(dict(parameters), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def split(parameters: Mapping[str, str]) -> Parameters:
    """Return `role.key` parameters of a question in their order; raise FIELD_INVALID."""
    for name, value in parameters.items():
        role, _, key = name.partition(".")
        check_parameters(role, {key: value})
    return tuple(sorted(parameters.items()))


def none(_user_id: str, _roles: Sequence[str]) -> Parameters:
    """The parameters of a deployment that has none."""
    return ()


def _invalid(field: str, what: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, f"{field} {what}", field=field)
