"""Takes an OTLP export request apart without parsing its spans. Pure.

The spans are read from their bytes by an allow-list anyway (spanfilter.py). Resource and scope are
left behind: they may hold anything.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from sealward.kit.wire import BYTES, WireError, scan

# ExportTraceServiceRequest.resource_spans, ResourceSpans.scope_spans, ScopeSpans.spans
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2


class ExportRequest:
    """An ExportTraceServiceRequest. `spans` are the serialised spans, in order."""

    __slots__ = ("spans",)

    def __init__(self, spans: list[bytes]) -> None:
        self.spans = spans

    @staticmethod
    def FromString(body: bytes) -> ExportRequest:
        """Take a request apart; raise DecodeError when it is not one."""
        spans: list[bytes] = []
        try:
            for resource in _messages(body, _RESOURCE_SPANS):
                for scope in _messages(resource, _SCOPE_SPANS):
                    spans += _messages(scope, _SPANS)
        except WireError:
            raise DecodeError("not an export request") from None
        return ExportRequest(spans)


def _messages(data: bytes, number: int) -> list[bytes]:
    """Return the messages of a repeated field; what else is there must be well-formed."""
    found = []
    for field, wire_type, start, end in scan(data):
        if field == number:
            if wire_type != BYTES:
                raise WireError("a message is length-delimited")
            found.append(data[start:end])
    return found
