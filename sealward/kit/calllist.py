"""One line of a caller's own list of its calls: how it is written and read. Pure.

The list is what the caller compares with the operator's log (docs/reconcile.md): JSON, one object a
line, no payload, no patient, no token. Four kinds of lines:

    {"list":"sealward-calls/1","user":"ann","part":1,"at":TIME}          a file begins
    {"session":S,"seq":7,"at":TIME}                                      a call is about to be sent
    {"session":S,"seq":7,"at":TIME,"outcome":"ok","event_id":…,"log":…,"log_index":12}    it ended
    {"session":S,"skipped":[8,256],"at":TIME}                            numbers passed over

A call that is sent and has no end was never answered, or its process died. TIME is UTC with
milliseconds. `outcome` is what a verified receipt said (`ok`, `denied`, `failed`), `no-answer` for
an error without a receipt, or `untrusted` for an answer whose receipt did not hold. An error also
has its gRPC `code`, and its `reason` where there was one. Skipped numbers may be those of calls
that the machine forgot when it stopped without warning.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT = "sealward-calls/1"
RECEIPTED = ("ok", "denied", "failed")
NO_ANSWER, UNTRUSTED = "no-answer", "untrusted"
OUTCOMES = (*RECEIPTED, NO_ANSWER, UNTRUSTED)

_SESSION = re.compile(r"~?[0-9A-Za-z._-]{1,64}")
_WORD = re.compile(r"[A-Za-z0-9_]{0,64}")
_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}")
_MAX = (1 << 63) - 1


class LineError(ValueError):
    """A line is not one of a list of calls. Carries nothing of it."""


@dataclass(frozen=True, slots=True)
class Begins:
    """A file of the list begins: the caller's name, and which file of its list it is (from 1)."""

    user: str
    part: int
    at: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A call is about to be sent. `at` is in nanoseconds since the epoch, as everywhere here."""

    session: str
    seq: int
    at: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A call ended. `event_id` (16 bytes), `log` and `log_index` are there with a receipt alone."""

    session: str
    seq: int
    at: int
    outcome: str
    event_id: bytes = b""
    log: str = ""
    log_index: int | None = None
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Numbers [first, last] that the list knows nothing of: the machine stopped meanwhile."""

    session: str
    first: int
    last: int
    at: int


Line = Begins | Sent | Ended | Skipped


def write_line(line: Line) -> bytes:
    """Return the line with its end."""
    values: dict[str, Any]
    match line:
        case Begins():
            values = {"list": FORMAT, "user": line.user, "part": line.part}
        case Skipped():
            values = {"session": line.session, "skipped": [line.first, line.last]}
        case Sent() | Ended():
            values = {"session": line.session, "seq": line.seq}
    values["at"] = _time(line.at)
    if isinstance(line, Ended):
        values["outcome"] = line.outcome
        if line.event_id:
            values["event_id"] = str(uuid.UUID(bytes=line.event_id))
        values |= {
            name: value
            for name, value in (
                ("log", line.log), ("log_index", line.log_index), ("code", line.code),
                ("reason", line.reason),
            )
            if value not in ("", None)
        }  # fmt: skip
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def read_line(data: bytes) -> Line:
    """Read a line; raise LineError."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise LineError from None
    return read_object(values)


def read_object(values: Any) -> Line:
    """Read a line that was parsed as JSON; raise LineError."""
    try:
        return _read(values)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise LineError from None


def is_call(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object claims to be a line of a list of calls."""
    return "list" in values or ("session" in values and ("seq" in values or "skipped" in values))


def _read(values: Any) -> Line:
    at = _nanos(values["at"])
    if "list" in values:
        if values["list"] != FORMAT or not isinstance(values["user"], str):
            raise LineError
        return Begins(values["user"], _number(values["part"]), at)
    session = _text(values["session"], _SESSION)
    if "skipped" in values:
        first, last = map(_number, values["skipped"])
        if not 0 < first <= last:
            raise LineError
        return Skipped(session, first, last, at)
    seq = _number(values["seq"])
    outcome = values.get("outcome")
    if outcome is None:
        return Sent(session, seq, at)
    if outcome not in OUTCOMES:
        raise LineError
    event_id, index = values.get("event_id"), values.get("log_index")
    log = values.get("log", "")
    if not isinstance(log, str) or (outcome in RECEIPTED) is (event_id is None):
        raise LineError
    return Ended(
        session,
        seq,
        at,
        outcome,
        b"" if event_id is None else uuid.UUID(_text(event_id, _UUID)).bytes,
        log,
        None if index is None else _number(index),
        _text(values.get("code", ""), _WORD),
        _text(values.get("reason", ""), _WORD),
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX:
        raise LineError
    return value


def _text(value: Any, form: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise LineError
    return value


def _time(nanos: int) -> str:
    moment = dt.datetime.fromtimestamp(nanos // 1_000_000_000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos // 1_000_000 % 1000:03d}Z"


def _nanos(text: Any) -> int:
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise LineError
    nanos = int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    return _number(nanos)
