"""The user directory: SQLite, committed to the disk before anybody is told.

A user is never deleted, so neither an id nor a name ever comes to mean somebody else. Which
sessions were ended stands in here too: the session store is not trusted to forget them.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealward.kit.enroll import write_private
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.database import opening
from services.gateway.ended import ENDED, EndedSessions
from services.gateway.passwords import Passwords, check_new
from services.gateway.throttle import LoginThrottle

ROLES = (
    "clinician",
    "service",
    "operator",
    "model-admin",
    "security-admin",
    "privacy-officer",
    "break-glass",
)
FIRST_ADMINISTRATOR = "admin"

_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS user (
  user_id  TEXT PRIMARY KEY,
  name     TEXT NOT NULL UNIQUE,
  roles    TEXT NOT NULL,
  secret   TEXT NOT NULL,
  one_time INTEGER NOT NULL,
  disabled INTEGER NOT NULL DEFAULT 0,
  created  INTEGER NOT NULL,
  generation INTEGER NOT NULL DEFAULT 0,
  version  INTEGER NOT NULL DEFAULT 1
) STRICT
"""
_ADDED = {
    "generation": "ALTER TABLE user ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
    "version": "ALTER TABLE user ADD COLUMN version INTEGER NOT NULL DEFAULT 1",
}
# Users whose certificates are still to be revoked.
_DUE = "CREATE TABLE IF NOT EXISTS revocation_due (name TEXT PRIMARY KEY) STRICT"
_CHANGE = "generation = generation + 1, version = version + 1"
_COLUMNS = "user_id, name, roles, secret, one_time, disabled, created, generation, version"


@dataclass(frozen=True, slots=True)
class User:
    """A user without the password. `created` is in seconds since the epoch.

    `generation` rises when all of the user's sessions end, `version` with each change.
    """

    user_id: str
    name: str
    roles: tuple[str, ...]
    one_time: bool
    disabled: bool
    created: int
    generation: int = 0
    version: int = 1


class UserDirectory(EndedSessions):
    """The users of this deployment. Thread-safe."""

    _TABLE, _ID = "user", "user_id"

    def __init__(self, path: Path, passwords: Passwords, throttle: LoginThrottle) -> None:
        self._passwords = passwords
        self.throttle = throttle
        self._lock = threading.Lock()
        with opening(path, "the user directory") as self._db:
            self._db.execute(_SCHEMA)
            columns = [row[1] for row in self._db.execute("PRAGMA table_info(user)")]
            for column, change in _ADDED.items():
                if column not in columns:
                    self._db.execute(change)
            self._db.execute(ENDED)
            self._db.execute(_DUE)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def bootstrap(self, file: Path) -> bool:
        """On the first start make the first administrator; return whether it did.

        The generated password is for one use and goes to `file` (0600) before the user exists, so
        that a start that dies in between is simply repeated.
        """
        if self.all():
            return False
        password = secrets.token_urlsafe(18)
        write_private(file, password.encode() + b"\n")
        self.create(FIRST_ADMINISTRATOR, ("security-admin",), password, one_time=True)
        return True

    def create(self, name: str, roles: Sequence[str], password: str, *, one_time: bool) -> User:
        """Add a user; raise FIELD_INVALID, PASSWORD_UNACCEPTABLE or ALREADY_EXISTS."""
        if not _NAME.fullmatch(name):
            raise SealwardError(
                Reason.FIELD_INVALID,
                "a user name has 1 to 64 of a-z, 0-9, dot, dash, underscore; starts with a letter",
                field="user",
            )
        _check_roles(roles)
        check_new(password, "password")
        if self.get(name) is not None:
            raise _exists()
        return self._insert(name, roles, self._passwords.hash(password), one_time=one_time)

    def _insert(self, name: str, roles: Sequence[str], secret: str, *, one_time: bool) -> User:
        """Write a user down. An empty `secret` is of no password: none is right."""
        user = User(
            secrets.token_hex(16), name, tuple(sorted(roles)), one_time, False, int(time.time())
        )
        row = (
            *(user.user_id, name, json.dumps(user.roles), secret),
            *(int(one_time), 0, user.created, 0, 1),
        )
        try:
            with self._lock:
                marks = ", ".join("?" * len(row))
                self._db.execute(f"INSERT INTO user ({_COLUMNS}) VALUES ({marks})", row)  # noqa: S608
        except sqlite3.IntegrityError:
            raise _exists() from None
        return user

    def get(self, name: str) -> User | None:
        """Return a user by name."""
        row = self._row(name)
        return None if row is None else _user(row)

    def all(self) -> list[User]:
        """Return every user, sorted by name."""
        with self._lock:
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM user ORDER BY name").fetchall()  # noqa: S608
        return [_user(row) for row in rows]

    def disable(self, name: str) -> User:
        """Stop a user from logging in, and note that certificates are to be revoked.

        Their sessions have ended when it returns; telling the gateways is the caller's. Raises
        NOT_FOUND.
        """
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            done = self._db.execute(
                f"UPDATE user SET disabled = 1, {_CHANGE} WHERE name = ?",  # noqa: S608
                (name,),
            )
            if done.rowcount:
                self._db.execute("INSERT OR IGNORE INTO revocation_due VALUES (?)", (name,))
        return self.existing(name)

    def existing(self, name: str) -> User:
        """Return a user by name; raise NOT_FOUND."""
        user = self.get(name)
        if user is None:
            raise SealwardError(Reason.NOT_FOUND, "there is no such user", field="user")
        return user

    def due(self) -> list[str]:
        """Return the disabled users whose certificates are still to be revoked."""
        with self._lock:
            rows = self._db.execute("SELECT name FROM revocation_due ORDER BY name").fetchall()
        return [str(row[0]) for row in rows]

    def settle(self, name: str) -> None:
        """Note that a user's certificates are revoked."""
        with self._lock:
            self._db.execute("DELETE FROM revocation_due WHERE name = ?", (name,))

    def set_roles(self, name: str, roles: Sequence[str], version: int) -> User:
        """Give a user other roles, as a change of this version; their sessions have ended.

        Of two changes that race the second raises USER_CHANGED. Raises NOT_FOUND, FIELD_INVALID.
        """
        _check_roles(roles)
        user = self.existing(name)
        with self._lock:
            changed = self._db.execute(
                f"UPDATE user SET roles = ?, {_CHANGE} WHERE name = ? AND version = ?",  # noqa: S608
                (json.dumps(sorted(roles)), name, version),
            ).rowcount
        if changed != 1:
            raise SealwardError(
                Reason.USER_CHANGED,
                f"another change of {user.name} came first: read it and change it again",
                field="version",
            )
        return self.existing(name)

    def reset_password(self, name: str, password: str, *, one_time: bool) -> User:
        """Give a user another password; their sessions have ended.

        Raises NOT_FOUND, PASSWORD_UNACCEPTABLE, OVERLOADED.
        """
        check_new(password, "password")
        self.existing(name)
        secret = self._passwords.hash(password)
        with self._lock:
            self._db.execute(
                f"UPDATE user SET secret = ?, one_time = ?, {_CHANGE} WHERE name = ?",  # noqa: S608
                (secret, int(one_time), name),
            )
        return self.existing(name)

    def authenticate(
        self,
        name: str,
        password: str,
        new_password: str = "",
        second: Callable[[User], None] = lambda _user: None,
        source: str = "",
    ) -> User:
        """Check a password, and change it when a new one is given.

        `second` checks what else this user has to show: it is called when the password is right and
        before anything changes, and raises what stands against the login. `source` is the address
        that the login comes from.

        Raises LOGIN_FAILED, the same and after the same work, for an unknown or disabled user and
        for a wrong password; RATE_LIMITED; LOGIN_LOCKED; OVERLOADED; PASSWORD_CHANGE_REQUIRED when
        the password is for one use and no new one is given; PASSWORD_UNACCEPTABLE.
        """
        with self.throttle.attempt(name, source):
            row = self._row(name)
            right = self._passwords.verify(None if row is None else str(row[3]), password)
        if row is None or not right or row[5]:
            self.throttle.failed(name, source)
            raise SealwardError(Reason.LOGIN_FAILED, "user name or password is wrong")
        # Others may have failed meanwhile: as many guesses count as were made.
        self.throttle.check(name, source)
        user = _user(row)
        second(user)
        # Not before: a right password alone must not clear what wrong codes have counted.
        self.throttle.succeeded(name)
        if new_password:
            check_new(new_password, "new_password", old=password)
        elif user.one_time:
            raise SealwardError(
                Reason.PASSWORD_CHANGE_REQUIRED,
                "the password is for one use: give a new one",
                field="new_password",
            )
        if new_password or self._passwords.outdated(str(row[3])):
            self._change(name, str(row[3]), new_password or password)
        return user

    def _change(self, name: str, old_secret: str, password: str) -> None:
        secret = self._passwords.hash(password)
        with self._lock:
            changed = self._db.execute(
                "UPDATE user SET secret = ?, one_time = 0"
                " WHERE name = ? AND secret = ? AND disabled = 0",
                (secret, name, old_secret),
            ).rowcount
        if changed != 1:
            # Another login used the one-time password in the meantime.
            raise SealwardError(Reason.LOGIN_FAILED, "user name or password is wrong")

    def provision(self, name: str, roles: Sequence[str]) -> User:
        """Add a user who logs in elsewhere and has no password; raise ALREADY_EXISTS."""
        return self._insert(name, roles, "", one_time=False)

    def _row(self, name: str) -> tuple[object, ...] | None:
        with self._lock:
            found: tuple[object, ...] | None = self._db.execute(
                f"SELECT {_COLUMNS} FROM user WHERE name = ?",  # noqa: S608
                (name,),
            ).fetchone()
        return found


def _user(row: tuple[object, ...]) -> User:
    user_id, name, roles, _, one_time, disabled, created, generation, version = row
    return User(
        str(user_id),
        str(name),
        tuple(json.loads(str(roles))),
        bool(one_time),
        bool(disabled),
        int(str(created)),
        int(str(generation)),
        int(str(version)),
    )


def _check_roles(roles: Sequence[str]) -> None:
    if not roles or not set(roles) <= set(ROLES) or len(set(roles)) != len(roles):
        raise SealwardError(
            Reason.FIELD_INVALID, f"roles are of {', '.join(ROLES)}, each once", field="roles"
        )


def _exists() -> SealwardError:
    return SealwardError(Reason.ALREADY_EXISTS, "there is a user of this name", field="user")
