"""What is found in a list of the other party: calls, and what is no call, by its line."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sealward.kit.calllist import OUTCOMES

EVENT_SYSTEM = "urn:sealward:event"
"""System of a FHIR identifier, or URL of an extension, whose value is an event id."""

_UUID = re.compile(
    r"(?:urn:uuid:)?\{?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32})\}?",
    re.IGNORECASE,
)
_UUID_IN_TEXT = re.compile(
    r"(?<![0-9a-f-])(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-f-])",
    re.IGNORECASE,
)
_SESSION = re.compile(r"~?[0-9A-Za-z._-]{1,64}")
_MOST = (1 << 63) - 1
# Names that the columns of a table, or the keys of an object, may have.
ALIASES: Mapping[str, str] = {
    alias: name
    for name, aliases in {
        "event_id": ("event_id", "event-id", "eventid", "sealward-event-id"),
        "session": ("session", "session_id", "session-id"),
        "seq": ("seq", "caller_seq", "caller-seq", "sealward-seq"),
        "outcome": ("outcome",),
        "log": ("log", "origin"),
        "log_index": ("log_index", "log-index", "sealward-log-index"),
    }.items()
    for alias in aliases
}


class ListError(Exception):
    """A file that cannot be read as a list at all. The text names forms and sizes, no contents."""


class ItemError(ValueError):
    """A part of a list is not what it should be. Carries nothing of it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One call, as far as the list knows it. `line` is where it stands, from 1.

    `event_id` is 16 bytes or empty; `seq` is the caller's own number in `session`, 0 = none;
    `outcome` is one of OUTCOMES or empty. `at` is in nanoseconds since the epoch, 0 = not known.
    `sent` marks a call that is about to be sent; its end is another item.
    """

    line: int
    event_id: bytes = b""
    session: str = ""
    seq: int = 0
    outcome: str = ""
    at: int = 0
    log: str = ""
    log_index: int | None = None
    sent: bool = False


@dataclass(frozen=True, slots=True)
class Passed:
    """Numbers [first, last] of a session that the list knows nothing of."""

    line: int
    session: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Heading:
    """A list of calls begins: whose, and which part of it."""

    line: int
    user: str
    part: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is not what it should be."""

    line: int


@dataclass(frozen=True, slots=True)
class Other:
    """A line without an event id of ours: a heading, a result of somebody else."""

    line: int


Found = Item | Passed | Heading | Malformed | Other


@dataclass(slots=True)
class Counts:
    """What a file held. `malformed` names lines, the first so many of `malformed_count`."""

    lines: int = 0
    items: int = 0
    other: int = 0
    malformed_count: int = 0
    malformed: list[int] = field(default_factory=list)


def read_id(text: Any) -> bytes:
    """Return the 16 bytes of an event id as people and programs write it; raise ItemError."""
    match = _UUID.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ItemError
    return uuid.UUID(match[1]).bytes


def ids_in(text: str) -> list[bytes]:
    """Return the UUIDs in a text that may be event ids: those of version 7, and 8 for spans."""
    found = [uuid.UUID(match[0]).bytes for match in _UUID_IN_TEXT.finditer(text)]
    return [one for one in found if one[6] >> 4 in (7, 8) and one[8] >> 6 == 2]


def item_of(line: int, values: Mapping[str, Any]) -> Item | Other:
    """Return the call of a row, its values by their names of `ALIASES`; raise ItemError."""
    event_id = values.get("event_id")
    seq = _number(values.get("seq"))
    session = values.get("session") or ""
    if not isinstance(session, str) or (session and not _SESSION.fullmatch(session)):
        raise ItemError
    found = read_id(event_id) if event_id not in (None, "") else b""
    if not found and not (seq and session):
        return Other(line)
    outcome = values.get("outcome")
    log = values.get("log")
    index = values.get("log_index")
    return Item(
        line,
        found,
        session,
        seq if session else 0,
        # A column of that name may be about something else.
        outcome if isinstance(outcome, str) and outcome in OUTCOMES else "",
        log=log if isinstance(log, str) and len(log) <= 256 else "",
        log_index=_number(index) if index not in (None, "") else None,
    )


def _number(value: Any) -> int:
    if value in (None, ""):
        return 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ItemError
    return value
