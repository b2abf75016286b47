"""Spans as bytes, read back with the published OTLP classes."""

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sealward.kit import spans

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_root_span_begins_a_trace_of_its_own() -> None:
    head = spans.SpanHead("inference.predict")
    first = Span.FromString(head.build(1, 2, [spans.STATUS_OK]))
    second = Span.FromString(head.build(1, 2, [spans.STATUS_OK]))
    assert len(first.trace_id) == 16
    assert len(first.span_id) == 8
    assert first.parent_span_id == b""
    assert first.trace_id != second.trace_id
    assert first.kind == Span.SPAN_KIND_SERVER
    assert first.name == "inference.predict"
    assert first.status == Status(code=Status.STATUS_CODE_OK)


def test_a_span_under_a_callers_trace() -> None:
    parent = spans.parse_traceparent(TRACE)
    assert parent is not None
    span = Span.FromString(spans.SpanHead("x").build(5, 9, [spans.STATUS_ERROR], parent=parent))
    assert span.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"
    assert span.span_id not in (b"", span.parent_span_id)
    assert span.flags & 0x300 == 0x300
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (5, 9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        TRACE + "-00",
        TRACE.replace("00-4bf", "ff-4bf"),
        TRACE.upper(),
        TRACE.replace("4736", "473g"),
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        "00-4bf92f3577b34da6a3ce929d0e0e 736-00f067aa0ba902b7-01",
    ],
)
def test_a_bad_traceparent_is_no_parent(text: str) -> None:
    assert spans.parse_traceparent(text) is None


def test_a_newer_traceparent_version_may_be_longer() -> None:
    assert spans.parse_traceparent(TRACE.replace("00-", "01-", 1) + "-more") is not None


def test_fixed_size_text_refuses_another_size() -> None:
    text = spans.TextAttribute("sealward.event.id", 36)
    with pytest.raises(ValueError, match="size"):
        text.encode(b"short")


def test_a_place_in_a_trace_goes_between_services_as_24_bytes() -> None:
    place = spans.TraceParent(b"t" * 16, b"s" * 8)
    assert spans.TraceParent.decoded(place.encoded) == place
    for data in (b"", bytes(24), b"t" * 23, b"t" * 25, b"t" * 16 + bytes(8), bytes(16) + b"s" * 8):
        assert spans.TraceParent.decoded(data) is None
