"""From the attributes of a span to its row in the index. Pure.

The same function serves an entry that was just made and one that was opened again from the log, so
that a rebuilt index is the same table.
"""

from __future__ import annotations

from collections.abc import Mapping

from sealward.kit import attributes as names
from sealward.kit.spans import AttributeValue
from services.audit.index import Row
from services.audit.spanfilter import FilteredSpan, SpanFilter

_MAX_INT = (1 << 63) - 1


def row_of(event_id: bytes, span: FilteredSpan, values: Mapping[str, AttributeValue]) -> Row:
    """Return the row of an event. `values` are the attributes as they are sealed, by name."""
    get = values.get
    outcome = get(names.OUTCOME)
    producer = str(get(names.PRODUCER_ID, ""))
    return Row(
        event_id,
        span.start,
        span.event_type,
        outcome if isinstance(outcome, str) else "failed" if span.failed else "ok",
        str(get(names.CODE, "")),
        str(get(names.REASON, "")),
        str(get(names.ACTOR_ID, "")),
        str(get(names.ACTOR_KIND, "")),
        str(get(names.SESSION_ID, "")),
        _number(get(names.CALLER_SEQ)),
        str(get(names.PURPOSE, "")),
        1 if get(names.BREAK_GLASS) is True else 0,
        str(get(names.PATIENT, "")),
        str(get(names.MODEL_NAME, "")),
        str(get(names.MODEL_VERSION, "")),
        str(get(names.ORGANIZATION, "")),
        str(get(names.TARGET, "")),
        producer,
        _number(get(names.PRODUCER_SEQ)),
        span.trace_id,
    )


class RowReader:
    """Reads rows from opened spans. Thread-safe."""

    def __init__(self) -> None:
        self._filter = SpanFilter(names.ALLOWED | names.AUDIT_ONLY, audit_only=True)

    def read(self, event_id: bytes, span: bytes) -> Row:
        """Return the row of an opened span; raise SpanError, which no sealed span does."""
        found = self._filter.filter(span)
        return row_of(event_id, found, found.values)


def _number(value: AttributeValue | None) -> int:
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INT
    return int(value) if usable and isinstance(value, int) else 0
