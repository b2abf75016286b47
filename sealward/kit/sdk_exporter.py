"""The OpenTelemetry SDK's spans into the spool, through the allow-list.

Use it behind `SimpleSpanProcessor`: a span that ended is then on the disk. `BatchSpanProcessor`
drops spans under pressure and would make this no audit channel.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind as SdkKind
from opentelemetry.trace import StatusCode

from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.spans import (
    STATUS_ERROR,
    STATUS_OK,
    AttributeValue,
    SpanKind,
    attribute,
)
from sealward.kit.spool import Build, Spool
from sealward.kit.wire import bytes_field, fixed64_field, string_field, varint_field

_KINDS = {SdkKind.SERVER: SpanKind.SERVER, SdkKind.CLIENT: SpanKind.CLIENT}
_NAME = "span"


_OURS = (names.PRODUCER_ID, names.PRODUCER_INSTANCE, names.PRODUCER_SEQ)


class SpoolSpanExporter(SpanExporter):
    """Filters SDK spans and spools them.

    Only ids, times, kind, status code and allow-listed attributes pass. Names, events, links,
    status texts, resource and scope may hold anything and stay behind; the name becomes the
    event type. `dropped` counts attributes that did not pass.
    """

    def __init__(self, spool: Spool, producer: str) -> None:
        self._spool = spool
        self._producer = attribute(names.PRODUCER_ID, producer)
        if spool.instance:
            self._producer += attribute(names.PRODUCER_INSTANCE, spool.instance)
        self.dropped = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Spool spans; FAILURE when the spool did not take them."""
        try:
            self._spool.extend([self._build(span) for span in spans])
        except SealwardError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to do: whoever made the spool closes it."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002
        """True: what `export` took is on the disk."""
        return True

    def _build(self, span: ReadableSpan) -> Build:
        parts: list[bytes] = [self._producer]
        kept: dict[str, AttributeValue] = {}
        for key, value in (span.attributes or {}).items():
            if key not in names.ALLOWED or key in _OURS:
                self.dropped += 1
            elif isinstance(value, str | bool | int | float):
                kept[key] = value
            elif isinstance(value, Sequence):
                kept[key] = [str(item) for item in value]
            else:
                self.dropped += 1
        parts += [attribute(key, value) for key, value in kept.items()]
        if span.status.status_code is StatusCode.OK:
            parts.append(STATUS_OK)
        elif span.status.status_code is StatusCode.ERROR:
            parts.append(STATUS_ERROR)
        return _builder(span, kept.get(names.EVENT_TYPE), parts)


def _builder(span: ReadableSpan, event_type: AttributeValue | None, parts: list[bytes]) -> Build:
    context = span.get_span_context()
    if context is None:
        raise ValueError("a span without a context cannot be exported")
    named = isinstance(event_type, str) and event_type in names.EVENT_TYPES
    # Fields of opentelemetry.proto.trace.v1.Span.
    head = [
        bytes_field(1, context.trace_id.to_bytes(16, "big")),
        bytes_field(2, context.span_id.to_bytes(8, "big")),
        bytes_field(4, span.parent.span_id.to_bytes(8, "big")) if span.parent else b"",
        string_field(5, str(event_type) if named else _NAME),
        varint_field(6, _KINDS.get(span.kind, SpanKind.INTERNAL)),
        fixed64_field(7, span.start_time or 0),
        fixed64_field(8, span.end_time or 0),
    ]
    return lambda seq: b"".join((*head, *parts, attribute(names.PRODUCER_SEQ, seq)))
