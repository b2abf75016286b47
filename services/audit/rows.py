"""From the attributes of a span to its row in the index. Pure.

The same function serves an entry that was just made and one that was opened again from the log, so
that a rebuilt index is the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter

from sealward.kit import attributes as names
from sealward.kit.spans import AttributeValue
from services.audit.index import Row
from services.audit.spanfilter import FilteredSpan, SpanFilter

OWN = "audit"
"""The producer of the service's own events, taken from its certificate as everyone's is. What puts
something into effect by being in the log (a hold, a decision, a suspension) has to come from here:
another service may send events of any type."""

_MAX_INT = (1 << 63) - 1
_TEXTS = (
    names.CODE, names.REASON, names.ACTOR_ID, names.ACTOR_KIND, names.SESSION_ID, names.PURPOSE,
    names.PATIENT, names.MODEL_NAME, names.MODEL_VERSION, names.ORGANIZATION, names.TARGET,
    names.PRODUCER_ID, names.PRODUCER_INSTANCE, names.DATA_CATEGORY,
)  # fmt: skip
_EMPTY: Mapping[str, AttributeValue] = dict.fromkeys(_TEXTS, "")
_texts_of = itemgetter(*_TEXTS)
_ONLY_TEXT = {str}


def row_of(event_id: bytes, span: FilteredSpan, values: Mapping[str, AttributeValue]) -> Row:
    """Return the row of an event. `values` are the attributes as they are sealed, by name."""
    texts = _texts_of({**_EMPTY, **values})
    if {*map(type, texts)} != _ONLY_TEXT:
        texts = tuple(map(str, texts))
    (
        code, reason, actor, actor_kind, session, purpose, patient, model, model_version,
        organization, target, producer, instance, data_category,
    ) = texts  # fmt: skip
    get = values.get
    outcome = get(names.OUTCOME)
    return Row(
        event_id,
        span.start,
        span.event_type,
        outcome if isinstance(outcome, str) else "failed" if span.failed else "ok",
        code,
        reason,
        actor,
        actor_kind,
        session,
        _number(get(names.CALLER_SEQ)),
        purpose,
        1 if get(names.BREAK_GLASS) is True else 0,
        patient,
        model,
        model_version,
        organization,
        target,
        producer,
        _number(get(names.PRODUCER_SEQ)),
        span.trace_id,
        span.span_id,
        span.parent_id,
        instance,
        _number(get(names.COUNT)),
        data_category,
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
    return value if type(value) is int and 0 <= value <= _MAX_INT else 0
