"""Just-in-time access: one asks, another approves, and it ends by itself.

A grant covers one user, one model and one purpose for a time. Whether a grant counts, and for
whom, is the policy's to say (`context.granted`). Requests and decisions stay in the file: they are
part of the access review.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.database import opening
from services.gateway.purposes import PURPOSES

SHORTEST, LONGEST, USUAL = 60, 86_400, 3_600
REQUEST_SECONDS = 7 * 86_400
"""A request that nobody decides ends after this time."""
STATES = ("requested", "granted", "denied", "revoked", "expired")

_MOST_OPEN = 32
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TICKET = re.compile(r"[A-Za-z0-9._/-]{0,64}")
_ID = re.compile(r"[0-9a-f]{32}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS access (
  id TEXT PRIMARY KEY, user_id TEXT NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL,
  purpose TEXT NOT NULL, seconds INTEGER NOT NULL, ticket TEXT NOT NULL, state TEXT NOT NULL,
  requested INTEGER NOT NULL, decided INTEGER NOT NULL, expires INTEGER NOT NULL,
  decided_by TEXT NOT NULL
) STRICT
"""


@dataclass(frozen=True, slots=True)
class Access:
    """A request for access or what became of it. Times are in seconds since the epoch.

    `expires` is the end of the grant, or of the request while nobody decides. `decided_by` is
    `kind/name`.
    """

    id: str
    user_id: str
    user: str
    model: str
    purpose: str
    seconds: int
    ticket: str
    state: str
    requested: int
    decided: int
    expires: int
    decided_by: str

    def at(self, now: float) -> Access:
        """Return it as it is at this time: what is over has expired."""
        if self.state in ("requested", "granted") and now >= self.expires:
            return replace(self, state="expired")
        return self


_COLUMNS = ", ".join(field.name for field in fields(Access))


class Grants:
    """Requests and grants of this deployment. Thread-safe. `clock` gives epoch seconds."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Open or make the file; raise StartupError."""
        self._clock = clock
        self._lock = threading.Lock()
        with opening(path, "the file of grants") as self._db:
            self._db.execute(_SCHEMA)
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM access").fetchall()  # noqa: S608
        self._open: dict[tuple[str, str, str], float] = {}
        for row in rows:
            self._index(Access(*row))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def covers(self, user_id: str, model: str, purpose: str) -> bool:
        """Whether a grant of this user covers model and purpose now. No I/O: it is on the path."""
        if not self._open:
            return False
        return self._clock() < self._open.get((user_id, model, purpose), 0.0)

    def request(
        self, user_id: str, user: str, model: str, purpose: str, seconds: int, ticket: str
    ) -> Access:
        """Keep a request; raise FIELD_INVALID, PURPOSE_UNKNOWN, or OVERLOADED for too many."""
        seconds = seconds or USUAL
        if not _MODEL.fullmatch(model):
            raise _invalid("model", "is missing or has a form that no model has")
        if purpose not in PURPOSES:
            raise SealwardError(
                Reason.PURPOSE_UNKNOWN, "not a code of HL7 v3 PurposeOfUse", field="purpose"
            )
        if not SHORTEST <= seconds <= LONGEST:
            raise _invalid("seconds", f"is {SHORTEST} to {LONGEST}")
        check_ticket(ticket)
        now = int(self._clock())
        made = Access(
            secrets.token_hex(16), user_id, user, model, purpose, seconds, ticket, "requested",
            now, 0, now + REQUEST_SECONDS, "",
        )  # fmt: skip
        with self._lock:
            mine = self._read("WHERE user_id = ? AND state = 'requested'", (user_id,))
            if sum(found.state == "requested" for found in mine) >= _MOST_OPEN:
                raise SealwardError(
                    Reason.OVERLOADED, "too many requests wait for a decision", retry_after=60.0
                )
            self._write(made)
        return made

    def approve(self, access_id: str, by: str, decider_id: str) -> Access:
        """Grant a request of somebody else, from now on; raise NOT_FOUND or POLICY_DENIED."""
        now = int(self._clock())
        with self._lock:
            found = self._find(access_id, "requested")
            if decider_id == found.user_id:
                raise SealwardError(Reason.POLICY_DENIED, "nobody approves their own request")
            done = replace(
                found, state="granted", decided=now, decided_by=by, expires=now + found.seconds
            )
            self._write(done)
        return done

    def deny(self, access_id: str, by: str) -> Access:
        """Deny a request; raise NOT_FOUND."""
        return self._end(access_id, "requested", "denied", by)

    def revoke(self, access_id: str, by: str) -> Access:
        """End a grant before its time; raise NOT_FOUND."""
        return self._end(access_id, "granted", "revoked", by)

    def end_of(self, user_id: str, by: str) -> int:
        """Revoke what a user was granted and deny what they asked for; return how many."""
        ended = 0
        now = int(self._clock())
        with self._lock:
            for found in self._read("WHERE user_id = ?", (user_id,)):
                if found.state not in ("requested", "granted"):
                    continue
                state = "revoked" if found.state == "granted" else "denied"
                self._write(replace(found, state=state, decided=now, decided_by=by))
                ended += 1
        return ended

    def put_back(self, access: Access) -> None:
        """Write what was: the change of it could not be recorded."""
        with self._lock:
            self._write(access)

    def withdraw(self, access_id: str) -> None:
        """Forget a request that could not be recorded."""
        with self._lock:
            self._db.execute("DELETE FROM access WHERE id = ?", (access_id,))

    def get(self, access_id: str) -> Access | None:
        """Return a request or grant as it is now; None for none."""
        with self._lock:
            found = self._read("WHERE id = ?", (access_id,))
        return found[0] if found else None

    def all(self, user_id: str = "", states: Iterable[str] = ()) -> list[Access]:
        """Return requests and grants, newest first: of one user, or of everybody."""
        where, values = ("WHERE user_id = ?", (user_id,)) if user_id else ("", ())
        wanted = set(states) or set(STATES)
        with self._lock:
            found = self._read(where, values)
        return [access for access in found if access.state in wanted]

    def _end(self, access_id: str, state: str, after: str, by: str) -> Access:
        with self._lock:
            found = self._find(access_id, state)
            done = replace(found, state=after, decided=int(self._clock()), decided_by=by)
            self._write(done)
        return done

    def _find(self, access_id: str, state: str) -> Access:
        found = self._read("WHERE id = ?", (access_id,)) if _ID.fullmatch(access_id) else []
        if not found or found[0].state != state:
            raise SealwardError(
                Reason.NOT_FOUND, f"there is no such access that is {state}", field="id"
            )
        return found[0]

    def _read(self, where: str, values: tuple[object, ...]) -> list[Access]:
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM access {where} ORDER BY requested DESC, id",  # noqa: S608
            values,
        ).fetchall()
        now = self._clock()
        return [Access(*row).at(now) for row in rows]

    def _write(self, access: Access) -> None:
        values = tuple(getattr(access, field.name) for field in fields(Access))
        marks = ", ".join("?" * len(values))
        self._db.execute(
            f"INSERT OR REPLACE INTO access ({_COLUMNS}) VALUES ({marks})",  # noqa: S608
            values,
        )
        self._index(access)

    def _index(self, access: Access) -> None:
        """Keep for the path what is granted: the latest end for each user, model and purpose."""
        key = (access.user_id, access.model, access.purpose)
        rows = self._db.execute(
            "SELECT max(expires) FROM access WHERE user_id = ? AND model = ? AND purpose = ?"
            " AND state = 'granted'",
            key,
        ).fetchone()
        if rows[0] is None or rows[0] <= self._clock():
            self._open.pop(key, None)
        else:
            self._open[key] = float(rows[0])


def check_ticket(ticket: str) -> None:
    """Raise FIELD_INVALID for a ticket that could be free text: that may name a patient."""
    if not _TICKET.fullmatch(ticket):
        raise _invalid("ticket", "has at most 64 letters, digits and ._-/")


def _invalid(field: str, what: str) -> SealwardError:
    return SealwardError(Reason.FIELD_INVALID, f"{field} {what}", field=field)
