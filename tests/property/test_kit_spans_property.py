"""Spans as bytes against the published OTLP classes."""

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sealward.kit import spans

_U64 = st.integers(0, 2**64 - 1)
_I64 = st.integers(-(2**63), 2**63 - 1)
_TEXT = st.text(max_size=200)
_VALUES: st.SearchStrategy[spans.AttributeValue] = st.one_of(
    _TEXT,
    st.booleans(),
    _I64,
    st.floats(allow_nan=False),
    st.binary(max_size=40),
    st.lists(_TEXT, max_size=4),
)


def _any_value(value: spans.AttributeValue) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=v) for v in value]))


@given(
    _TEXT,
    st.sampled_from(list(spans.SpanKind)),
    _U64,
    _U64,
    st.lists(st.tuples(_TEXT, _VALUES), max_size=6),
    st.sampled_from([spans.STATUS_OK, spans.STATUS_ERROR]),
)
def test_a_span_parses_as_what_was_written(
    name: str,
    kind: spans.SpanKind,
    start: int,
    end: int,
    pairs: list[tuple[str, spans.AttributeValue]],
    status: bytes,
) -> None:
    parts = [spans.attribute(key, value) for key, value in pairs]
    parsed = Span.FromString(spans.SpanHead(name, kind).build(start, end, [*parts, status]))
    code = Status.STATUS_CODE_OK if status is spans.STATUS_OK else Status.STATUS_CODE_ERROR
    expected = Span(
        trace_id=parsed.trace_id,
        span_id=parsed.span_id,
        flags=0x101,
        name=name,
        kind=Span.SpanKind.ValueType(kind),
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        attributes=[KeyValue(key=key, value=_any_value(value)) for key, value in pairs],
        status=Status(code=code),
    )
    assert parsed == expected


@given(_TEXT, st.lists(_I64 | st.integers(0, 2000), max_size=5))
def test_integer_attributes_are_the_same_as_plain_ones(key: str, values: list[int]) -> None:
    made = spans.IntAttribute(key)
    for value in values + values:
        assert made.encode(value) == spans.attribute(key, value)


@given(_TEXT, st.text(st.characters(codec="ascii"), min_size=1, max_size=300))
def test_fixed_text_attributes_are_the_same_as_plain_ones(key: str, text: str) -> None:
    made = spans.TextAttribute(key, len(text))
    assert made.encode(text.encode()) == spans.attribute(key, text)
