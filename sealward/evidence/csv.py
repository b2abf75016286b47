"""CSV (RFC 4180): one row an event, safe to open in a spreadsheet.

A cell that begins with `=`, `+`, `-`, `@`, a tab or a line break would be run as a formula; it
gets an apostrophe in front. The columns are those of `COLUMNS`, in that order; times are UTC,
digests hex digits, `patient` is the pseudonym unless the export is an identified one. The last
three tie the row to the log: `sealward audit prove EVENT`, or a bundle, has the proof itself.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from sealward.evidence.event import Event
from sealward.evidence.fhir import instant
from sealward.evidence.purposes import in_words
from sealward.kit import attributes as names
from sealward.tlog.merkle import leaf_hash

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def _attribute(name: str) -> Callable[[Event], str]:
    return lambda event: event.text(name)


_CELLS: Mapping[str, Callable[[Event], str]] = MappingProxyType(
    {
        "event_id": lambda event: event.id,
        "started": lambda event: instant(event.span.start),
        "ended": lambda event: instant(event.span.end),
        "type": lambda event: event.type,
        "outcome": lambda event: event.outcome,
        "code": _attribute(names.CODE),
        "reason": _attribute(names.REASON),
        "actor": _attribute(names.ACTOR_ID),
        "actor_kind": _attribute(names.ACTOR_KIND),
        "roles": _attribute(names.ACTOR_ROLES),
        "organization": _attribute(names.ORGANIZATION),
        "session": _attribute(names.SESSION_ID),
        "purpose": _attribute(names.PURPOSE),
        "purpose_words": lambda event: in_words(event.text(names.PURPOSE)),
        "break_glass": _attribute(names.BREAK_GLASS),
        "patient": lambda event: event.patient,
        "model": _attribute(names.MODEL_NAME),
        "model_version": _attribute(names.MODEL_VERSION),
        "model_digest": _attribute(names.MODEL_DIGEST),
        "rows": _attribute(names.ROWS),
        "data_category": _attribute(names.DATA_CATEGORY),
        "data_origin": _attribute(names.DATA_ORIGIN),
        "policy": _attribute(names.POLICY_ID),
        "policy_digest": _attribute(names.POLICY_DIGEST),
        "caller_seq": _attribute(names.CALLER_SEQ),
        "target": _attribute(names.TARGET),
        "count": _attribute(names.COUNT),
        "producer": _attribute(names.PRODUCER_ID),
        "producer_seq": _attribute(names.PRODUCER_SEQ),
        "trace_id": lambda event: event.span.trace_id,
        "log": lambda event: event.origin,
        "log_index": lambda event: str(event.index),
        "leaf_hash": lambda event: leaf_hash(event.leaf).hex(),
    }
)

COLUMNS = tuple(_CELLS)
"""The columns, in order."""


def header() -> str:
    """Return the heading line."""
    return _line(COLUMNS)


def row(event: Event) -> str:
    """Return the line of an event."""
    return _line([safe(cell(event)) for cell in _CELLS.values()])


def lines(events: Iterable[Event]) -> Iterator[str]:
    """Yield the heading and a line an event."""
    yield header()
    for event in events:
        yield row(event)


def safe(cell: str) -> str:
    """Return the cell so that no spreadsheet takes it for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _line(cells: Iterable[str]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerow(cells)
    return out.getvalue()
