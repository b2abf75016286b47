"""Rows of a log as the reconciler sees them, made up."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from sealward.reconcile.compare import compare, resolve
from sealward.reconcile.completeness import Spools, check
from sealward.reconcile.items import Found
from sealward.reconcile.report import Report, Window
from sealward.reconcile.trail import Row, Trail

LOG = "sealward.local/2026"
SECOND = 1_000_000_000
START = 1_790_000_000 * SECOND
END = (1 << 63) - 1
SESSION, OTHER = "a1" * 16, "b2" * 16


def event_id(time: int, number: int = 0) -> bytes:
    """A UUIDv7 of a moment."""
    drawn = bytearray(number.to_bytes(10, "big")) if number else bytearray(secrets.token_bytes(10))
    drawn[0] = drawn[0] & 0x0F | 0x70
    drawn[2] = drawn[2] & 0x3F | 0x80
    return (time // 1_000_000).to_bytes(6, "big") + bytes(drawn)


class Log:
    """A log that grows by a second an event."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.time = START

    def add(self, **fields: Any) -> Row:
        """Add an event, by default an answer of the gateway."""
        self.time += SECOND
        values: dict[str, Any] = {
            "log": 0,
            "log_index": len(self.rows),
            "event_id": event_id(self.time),
            "time_unix_nano": self.time,
            "type": "inference.predict",
            "outcome": "ok",
            "producer": "gateway",
            "instance": "feed5eed",
            "producer_seq": 0,
            "session": "",
            "caller_seq": 0,
            "trace_id": secrets.token_bytes(16),
            "span_id": secrets.token_bytes(8),
            "parent_span_id": b"",
            "target": "",
            "asked": True,
        }
        row = Row(**{**values, **fields})
        self.rows.append(row)
        return row

    def calls(self, *numbers: int, session: str = SESSION, **fields: Any) -> list[Row]:
        """Answers to calls of a session, numbered by the gateway as they come."""
        return [
            self.add(session=session, caller_seq=n, producer_seq=len(self.rows) + 1, **fields)
            for n in numbers
        ]

    @property
    def later(self) -> int:
        """A time when nothing is on its way any more."""
        return self.time + 3600 * SECOND


def reconcile(
    log: Log,
    *lists: Iterable[Found],
    spools: Spools | None = None,
    heard: Sequence[tuple[str, str]] = (),
    limit: int = 100,
    **window: Any,
) -> Report:
    """Join rows and lists, and return the report."""
    report = Report(limit)
    asked = Window(**{"since": 0, "until": END, "now": log.later, **window})
    with Trail() as trail:
        trail.logs.append(LOG)
        trail.add_rows(log.rows)
        for run in heard:
            trail.heard_before(*run)
        for number, found in enumerate(lists):
            trail.add_list(f"list-{number}", found)
        trail.ready()
        resolve(trail)
        check(trail, report, asked, spools or {})
        if lists:
            compare(trail, report, asked)
    return report


def found(report: Report) -> dict[str, int]:
    """How much of each kind there is."""
    return {kind: count for kind, count in report.counts.items() if count}
