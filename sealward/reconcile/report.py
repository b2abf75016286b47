"""What a reconciliation found: how much of each kind, and the first of each by name."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

MISSING: Mapping[str, str] = MappingProxyType(
    {
        "number": "numbers that a producer gave and the log does not have",
        "call": "numbers that a caller gave and the log does not have",
        "span": "answers whose inference span is not there",
        "root": "spans of an answer that is not there",
        "double-number": "numbers that a producer gave twice",
        "double-call": "numbers that a caller gave twice in a session",
        "double-span": "spans that are there twice",
        "double-event": "event ids that are there twice",
        "only-theirs": "calls that the list has and the log has not",
        "only-ours": "events that the log has and the list has not",
        "differs": "calls of which list and log say different things",
        "double-listed": "calls that are twice in the list",
        "malformed": "lines of the list that cannot be read",
    }
)
"""Kinds of findings: with one of them something is missing."""

NOTES: Mapping[str, str] = MappingProxyType(
    {
        "not-yet": "may still come: too young, or in a spool",
        "unanswered": "calls without an answer, and without an event",
        "not-received": "events whose answer did not reach the caller",
        "untrusted": "answers that the caller's client refused to use",
        "not-listed": "events with numbers that the list lost when its machine stopped",
        "before-list": "events before the oldest part of the list",
        "after-list": "events after the end of the list",
        "outside": "calls of the list outside of the time or session asked for",
        "sparse": "sessions whose numbers do not go up one by one",
    }
)
"""Kinds of what was seen and is no finding."""

_KINDS = {**MISSING, **NOTES}


@dataclass(frozen=True, slots=True)
class Window:
    """Which events are judged: by their start, in nanoseconds since the epoch.

    `until` is exclusive; `now` is when the log was read; what is younger than `settle` before that
    may still come. `session` limits it to one session; with `of_user` everything of the user asked
    about has to be in the list.
    """

    since: int
    until: int
    now: int
    settle: int = 60 * 1_000_000_000
    session: str = ""
    of_user: bool = False

    def has(self, time: int) -> bool:
        """Whether a moment is in it."""
        return self.since <= time < self.until

    def young(self, time: int) -> bool:
        """Whether what belongs to that moment may still be on its way."""
        return time > self.now - self.settle


@dataclass(slots=True)
class Report:
    """Findings and notes. At most `limit` of a kind are kept by name (0 = all)."""

    limit: int = 100
    counts: Counter[str] = field(default_factory=Counter)
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, kind: str, weight: int = 1, **values: Any) -> None:
        """Add a finding or a note; `weight` is how many things it stands for."""
        if kind not in _KINDS:
            raise KeyError(kind)
        self.counts[kind] += weight
        kept = self.details.setdefault(kind, [])
        if not self.limit or len(kept) < self.limit:
            kept.append({name: value for name, value in values.items() if value not in ("", None)})

    @property
    def complete(self) -> bool:
        """True when nothing is missing."""
        return not any(self.counts[kind] for kind in MISSING)

    def part(self, kinds: Mapping[str, str]) -> dict[str, Any]:
        """Return what was found of some kinds, for JSON."""
        return {
            kind: {"count": self.counts[kind], "items": self.details.get(kind, [])}
            for kind in kinds
            if self.counts[kind]
        }


def instant(nanos: int) -> str:
    """Return a time (nanoseconds since the epoch) in UTC with milliseconds; empty for 0."""
    if not nanos:
        return ""
    moment = dt.datetime.fromtimestamp(nanos // 1_000_000_000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos // 1_000_000 % 1000:03d}Z"


def event_name(event_id: bytes) -> str:
    """Return an event id as people write it; empty for none."""
    return str(uuid.UUID(bytes=event_id)) if len(event_id) == 16 else ""


def event_time(event_id: bytes) -> int:
    """Return the time in an event id, nanoseconds since the epoch; 0 where it holds none.

    UUIDv7 (RFC 9562, 5.7) has it, and so have the ids that audit derives for exported spans.
    """
    if len(event_id) != 16 or event_id[6] >> 4 not in (7, 8):
        return 0
    return int.from_bytes(event_id[:6], "big") * 1_000_000
