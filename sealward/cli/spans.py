"""An opened event (a serialised OTLP span) in the form that `audit show --json` prints."""

from __future__ import annotations

from typing import Any

from sealward.cli.errors import CliError
from sealward.cli.times import show_nanos


def span_to_json(data: bytes) -> dict[str, Any]:
    """Return name, ids, times and attributes of a serialised opentelemetry.proto.trace.v1.Span."""
    from sealward.evidence.event import EvidenceError, read_span

    try:
        span = read_span(data)
    except EvidenceError as error:
        raise CliError(str(error)) from None
    return {
        "name": span.name,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "start": show_nanos(span.start),
        "end": show_nanos(span.end),
        "attributes": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in span.attributes.items()
        },
    }
