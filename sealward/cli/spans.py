"""An opened event (a serialised OTLP span) in the form that `audit show --json` prints."""

from __future__ import annotations

from typing import Any

from sealward.cli.errors import CliError
from sealward.cli.times import show_nanos


def span_to_json(data: bytes) -> dict[str, Any]:
    """Return name, ids, times and attributes of a serialised opentelemetry.proto.trace.v1.Span."""
    try:
        from opentelemetry.proto.trace.v1.trace_pb2 import Span
    except ImportError:
        raise CliError(
            "opening events needs a package that is not here", advice="pip install sealward[server]"
        ) from None
    span = Span.FromString(data)
    return {
        "name": span.name,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "start": show_nanos(span.start_time_unix_nano),
        "end": show_nanos(span.end_time_unix_nano),
        "attributes": {pair.key: _value(pair.value) for pair in span.attributes},
    }


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else None
