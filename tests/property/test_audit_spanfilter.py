"""The allow-list holds for every span: what is not listed never gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sealward.kit import attributes as names
from sealward.kit.spans import STATUS_ERROR, STATUS_OK, SpanHead
from sealward.kit.wire import bytes_field, fields
from services.audit.spanfields import SpanError
from services.audit.spanfilter import FilteredSpan, SpanFilter

FILTER = SpanFilter(names.ALLOWED)
OF_THE_LOG = SpanFilter(names.ALLOWED | names.AUDIT_ONLY, audit_only=True)
CANARY = "cAnArY-Miller-1955"

allowed_names = st.sampled_from(
    sorted(names.ALLOWED - {names.EVENT_TYPE} - names.WORDS - names.NUMBERS)
)
foreign_names = st.one_of(
    st.sampled_from(sorted(names.AUDIT_ONLY)),
    st.text(max_size=20).map(lambda t: "x" + t),
    allowed_names.map(lambda n: n + "x"),
    allowed_names.map(str.upper),
    st.just(""),
)
plain = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
good_values = st.one_of(
    plain.map(lambda t: AnyValue(string_value=t)),
    st.booleans().map(lambda b: AnyValue(bool_value=b)),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: AnyValue(int_value=n)),
    st.floats(allow_nan=False).map(lambda f: AnyValue(double_value=f)),
    st.binary(max_size=40).map(lambda b: AnyValue(bytes_value=b)),
    st.lists(plain, max_size=4).map(
        lambda ts: AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=t) for t in ts]))
    ),
)
bad_values = st.sampled_from(
    [
        AnyValue(),
        AnyValue(string_value=CANARY * 20),
        AnyValue(string_value=CANARY + "\n"),
        AnyValue(bytes_value=CANARY.encode() * 20),
        AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key=CANARY)])),
        AnyValue(array_value=ArrayValue(values=[AnyValue(kvlist_value=KeyValueList())])),
        AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=CANARY)] * 17)),
    ]
)
good = st.builds(lambda k, v: KeyValue(key=k, value=v), allowed_names, good_values)
bad = st.one_of(
    st.builds(lambda k: KeyValue(key=k, value=AnyValue(string_value=CANARY)), foreign_names),
    st.builds(lambda k, v: KeyValue(key=k, value=v), allowed_names, bad_values),
)


def base() -> Span:
    return Span(
        trace_id=b"t" * 16, span_id=b"s" * 8, start_time_unix_nano=5, end_time_unix_nano=6, kind=2
    )


@given(st.lists(st.one_of(good.map(lambda p: (True, p)), bad.map(lambda p: (False, p)))))
def test_only_listed_attributes_with_simple_values_pass(
    pairs: list[tuple[bool, KeyValue]],
) -> None:
    span = base()
    span.attributes.extend(pair for _, pair in pairs)
    filtered = FILTER.filter(span.SerializeToString())
    expected: dict[str, KeyValue] = {}
    for is_good, pair in pairs:
        if is_good:
            expected.setdefault(pair.key, pair)
    result = Span.FromString(filtered.body)
    assert {p.key: p for p in result.attributes} == expected
    assert len(result.attributes) == len(expected)
    assert filtered.dropped == len(pairs) - len(expected)
    assert set(filtered.values) == set(expected)
    assert CANARY.encode() not in filtered.body


words = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
sentences = st.one_of(
    st.tuples(words, st.sampled_from(" \u00a0\u00fc\u202e\u2010"), words)
    .map("".join)
    .map(lambda t: AnyValue(string_value=t)),
    good_values.filter(lambda v: not v.HasField("string_value")),
)


@given(st.sampled_from(sorted(names.WORDS)), words, sentences)
def test_what_is_a_word_is_no_sentence(name: str, word: str, sentence: AnyValue) -> None:
    for value, passes in ((AnyValue(string_value=word), True), (sentence, False)):
        span = base()
        span.attributes.add(key=name, value=value)
        raw = span.SerializeToString()
        filtered = FILTER.filter(raw)
        assert (filtered.dropped, set(filtered.values)) == ((0, {name}) if passes else (1, set()))
        # What is in a log is read as it is.
        assert set(OF_THE_LOG.filter(raw).values) == {name}


@given(st.sampled_from(sorted(names.NUMBERS)), good_values)
def test_what_is_a_number_is_no_text(name: str, value: AnyValue) -> None:
    span = base()
    span.attributes.add(key=name, value=value)
    filtered = FILTER.filter(span.SerializeToString())
    assert set(filtered.values) == ({name} if value.HasField("int_value") else set())


unknown = st.builds(
    bytes_field,
    st.integers(17, 5000),
    st.just(CANARY.encode()),
)


@given(
    st.lists(unknown, max_size=3),
    st.lists(unknown, max_size=3),
    st.lists(unknown, max_size=3),
    st.sampled_from([0, 1, 2]),
)
def test_everything_else_of_a_span_stays_behind(
    outer: list[bytes], inner: list[bytes], deep: list[bytes], code: int
) -> None:
    span = base()
    span.name = span.trace_state = CANARY
    span.events.add(name=CANARY).attributes.add(key=CANARY)
    span.links.add(trace_id=b"l" * 16, trace_state=CANARY)
    span.status.CopyFrom(Status(message=CANARY, code=code))  # type: ignore[arg-type]
    span.flags = 0x101
    value = AnyValue(int_value=4).SerializeToString() + b"".join(deep)
    pair = bytes_field(1, names.ROWS.encode()) + bytes_field(2, value) + b"".join(inner)
    raw = span.SerializeToString() + bytes_field(9, pair) + b"".join(outer)
    filtered = FILTER.filter(raw)
    assert CANARY.encode() not in filtered.body
    # Not hidden in fields that our own parser skips, either.
    assert {number for number, _, _ in fields(filtered.body)} <= {1, 2, 5, 6, 7, 8, 9, 15, 16}
    result = Span.FromString(filtered.body)
    assert (result.name, result.status.code, result.kind, result.flags) == (
        "otel.span", code, 2, 0x101,
    )  # fmt: skip
    assert [(p.key, p.value.int_value) for p in result.attributes] == [(names.ROWS, 4)]
    assert filtered.failed is (code == 2)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_span_or_a_span_error(data: bytes) -> None:
    try:
        filtered = FILTER.filter(data)
    except SpanError:
        return
    assert isinstance(filtered, FilteredSpan)
    Span.FromString(filtered.body)


@given(st.data())
def test_a_damaged_span_gives_a_span_or_a_span_error(data: st.DataObject) -> None:
    span = base()
    span.attributes.add(key=names.ROWS).value.int_value = 3
    span.attributes.add(key=names.EVENT_TYPE).value.string_value = "service.start"
    raw = bytearray(span.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        filtered = FILTER.filter(bytes(raw[:cut]))
    except SpanError:
        return
    result = Span.FromString(filtered.body)
    assert {p.key for p in result.attributes} <= names.ALLOWED


def test_the_event_type_names_the_span_and_has_a_form() -> None:
    span = base()
    pair = span.attributes.add(key=names.EVENT_TYPE)
    pair.value.string_value = "session.login"
    assert Span.FromString(FILTER.filter(span.SerializeToString()).body).name == "session.login"
    for wrong in (CANARY, "session", "session.", "Session.login", "a.b.c.d.e", ""):
        pair.value.string_value = wrong
        with pytest.raises(SpanError) as caught:
            FILTER.filter(span.SerializeToString())
        assert wrong not in str(caught.value) or not wrong
    pair.value.int_value = 4
    with pytest.raises(SpanError):
        FILTER.filter(span.SerializeToString())


def test_what_is_remembered_is_bounded() -> None:
    small = SpanFilter(names.ALLOWED)
    for number in range(10_000):
        span = base()
        span.attributes.add(key=names.TARGET).value.string_value = f"t{number}"
        small.filter(span.SerializeToString())
    assert len(small._attributes._known) <= 8192


@given(
    st.lists(st.lists(good, min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.integers(0, 2),
)
def test_spans_with_parts_in_common_keep_their_own_values(
    templates: list[list[KeyValue]], order: list[int], code: int
) -> None:
    """As from a producer that joins prepared parts: runs are recognised, and never mixed up."""
    fresh = SpanFilter(names.ALLOWED)
    status = (b"", STATUS_OK, STATUS_ERROR)[code]
    for number, first in enumerate([*order, *order, *order]):
        pairs = [
            KeyValue(key=names.EVENT_TYPE, value=AnyValue(string_value="service.start")),
            KeyValue(key=names.EVENT_ID, value=AnyValue(string_value=f"{number:032x}")),
            *templates[first % len(templates)],
            *templates[(first + number) % len(templates)],
        ]
        encoded = [bytes_field(9, pair.SerializeToString()) for pair in pairs]
        raw = SpanHead("service.start").build(7, 9, [*encoded, status])
        filtered = fresh.filter(raw)
        expected: dict[str, KeyValue] = {}
        for pair in pairs:
            expected.setdefault(pair.key, pair)
        wanted = Span.FromString(raw)
        del wanted.attributes[:]
        wanted.attributes.extend(expected.values())
        assert Span.FromString(filtered.body) == wanted
        assert list(filtered.values) == list(expected)
        assert filtered.dropped == len(pairs) - len(expected)
        assert (filtered.start, filtered.trace_id) == (7, wanted.trace_id)
        assert filtered.failed is (code == 2)
