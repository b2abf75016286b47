"""The byte-level reader and writer against the protobuf runtime."""

from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from sealward.api.oip.v2 import open_inference_pb2 as oip
from sealward.kit import wire

_NUMBERS = st.integers(1, 2**29 - 1)
_FIELDS = st.one_of(
    st.builds(wire.varint_field, _NUMBERS, st.integers(-(2**63), 2**64 - 1)),
    st.builds(wire.fixed64_field, _NUMBERS, st.integers(0, 2**64 - 1)),
    st.builds(wire.fixed32_field, _NUMBERS, st.integers(0, 2**32 - 1)),
    st.builds(wire.bytes_field, _NUMBERS, st.binary(max_size=300)),
    st.builds(
        lambda number, inner: wire.tag(number, 3) + inner + wire.tag(number, 4),
        _NUMBERS,
        st.builds(wire.bytes_field, _NUMBERS, st.binary(max_size=9)),
    ),
)
_TEXT = st.text(max_size=200)
_HEADS = st.one_of(
    st.builds(wire.string_field, st.integers(1, 3), _TEXT),
    st.builds(wire.varint_field, st.integers(1, 3), st.integers(0, 2**64 - 1)),
    st.builds(wire.fixed64_field, st.integers(1, 3), st.integers(0, 2**64 - 1)),
    st.builds(wire.bytes_field, st.integers(8, 40), st.binary(max_size=300)),
)


def _oracle(data: bytes) -> list[tuple[int, int, Any]] | None:
    """Read with the runtime, as unknown fields of a message that has none.

    The runtime lets field number 0 pass, which the format forbids; we do not.
    """
    try:
        message = Empty.FromString(data)
    except DecodeError:
        return None
    unknown = UnknownFieldSet(message)
    if _has_field_zero(unknown):
        return None
    found = (unknown[position] for position in range(len(unknown)))
    return [(f.field_number, f.wire_type, None if f.wire_type == 3 else f.data) for f in found]


def _has_field_zero(unknown: Any) -> bool:
    found = (unknown[position] for position in range(len(unknown)))
    return any(f.field_number == 0 or (f.wire_type == 3 and _has_field_zero(f.data)) for f in found)


def _ours(data: bytes) -> list[tuple[int, int, Any]] | None:
    try:
        return [(n, w, None if w == 3 else v) for n, w, v in wire.fields(data)]
    except wire.WireError:
        return None


@given(st.lists(_FIELDS, max_size=8).map(b"".join))
def test_well_formed_messages_read_the_same(data: bytes) -> None:
    assert _ours(data) == _oracle(data) is not None


@given(st.binary(max_size=40))
def test_any_bytes_read_the_same(data: bytes) -> None:
    assert _ours(data) == _oracle(data)


@given(st.lists(_FIELDS, max_size=4).map(b"".join), st.integers(0, 400), st.integers(0, 255))
def test_damaged_messages_read_the_same(data: bytes, at: int, byte: int) -> None:
    if data:
        at %= len(data)
        data = data[:at] + bytes((byte,)) + data[at + 1 :]
    assert _ours(data) == _oracle(data)


@given(st.lists(_HEADS, max_size=8).map(b"".join))
def test_head_of_a_request_reads_the_same(data: bytes) -> None:
    parsed = oip.ModelInferRequest.FromString(data)
    assert wire.oip_head(data) == (parsed.model_name, parsed.model_version, parsed.id)


@given(st.binary(max_size=60))
def test_a_request_that_the_runtime_takes_has_the_same_head(data: bytes) -> None:
    try:
        parsed = oip.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    try:
        ours = wire.oip_head(data)
    except wire.WireError:
        assert _oracle(data) is None  # only what the format itself forbids
    else:
        assert ours == (parsed.model_name, parsed.model_version, parsed.id)


@given(st.lists(st.tuples(_TEXT, _TEXT), max_size=5), _TEXT)
def test_string_parameters_read_the_same(pairs: list[tuple[str, str]], key: str) -> None:
    data = b"".join(
        wire.bytes_field(
            4,
            wire.string_field(1, name) + wire.bytes_field(2, wire.string_field(3, value)),
        )
        for name, value in pairs
    )
    parsed = oip.ModelInferResponse.FromString(data)
    for name in [key, *dict(pairs)]:
        expected = parsed.parameters[name].string_param if name in parsed.parameters else None
        assert wire.oip_string_parameter(data, name) == expected
