"""The fields of an OTLP Span beside its attributes, read from bytes and written anew. Pure."""

from __future__ import annotations

from typing import NamedTuple

from sealward.kit.spans import STATUS_ERROR, STATUS_OK
from sealward.kit.wire import BYTES, FIXED32, FIXED64, VARINT, WireError, fields, scan

# opentelemetry.proto.trace.v1.Span.
_TRACE_ID, _SPAN_ID, _PARENT_ID = 1, 2, 4
_KIND, _START, _END, _STATUS, _FLAGS = 6, 7, 8, 15, 16
_WIRE_TYPES = {
    _TRACE_ID: BYTES, _SPAN_ID: BYTES, _PARENT_ID: BYTES, _KIND: VARINT, _START: FIXED64,
    _END: FIXED64, _STATUS: BYTES, _FLAGS: FIXED32,
}  # fmt: skip
_ID_SIZES = {_TRACE_ID: 16, _SPAN_ID: 8, _PARENT_ID: 8}
# Tags of one byte: times, then everything with a length (ids, name, status), then the kind.
_TIME_TAGS = (0x39, 0x41)
_LENGTH_TAGS = frozenset({0x0A, 0x12, 0x22, 0x2A, 0x7A})
_KIND_TAG = 0x30
_STATUS_CODE, _STATUS_ERROR_CODE, _LAST_KIND = 3, 2, 5
# Trace flags and the two bits of SpanFlags; the rest is reserved.
_KNOWN_FLAGS = 0x3FF


class SpanError(ValueError):
    """The bytes are not a span that can be recorded. The text names the field, never a value."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class FixedFields(NamedTuple):
    """What stands before the span's name and after it, written anew, and what was read of it.

    `parent_id` is empty for a root span; `start` is in nanoseconds since the epoch; `failed` is
    what the status says.
    """

    before: bytes
    after: bytes
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    start: int
    failed: bool


def next_field(span: bytes, pos: int) -> int:
    """Return the position after the field at `pos`; raise WireError or IndexError."""
    tag = span[pos]
    if tag in _TIME_TAGS:
        end = pos + 9
    elif tag in _LENGTH_TAGS and span[pos + 1] < 0x80:
        end = pos + 2 + span[pos + 1]
    elif tag == _KIND_TAG and span[pos + 1] < 0x80:
        end = pos + 2
    else:
        # scan() reads one field and is left. A group does not end where its content does.
        _, wire_type, _, end = next(scan(span[pos:]))
        if wire_type not in (VARINT, FIXED32, FIXED64, BYTES):
            raise WireError("groups are not used")
        end += pos
    if end > len(span):
        raise WireError("truncated field")
    return end


def read_fixed(raw: list[bytes]) -> FixedFields:
    """Check fields (each with its tag) and write them anew; raise SpanError or WireError.

    Of a repeated one the last counts, as everywhere in protobuf. Unknown ones stay behind.
    """
    found: dict[int, bytes | int] = {}
    for field in raw:
        tag = field[0]
        if tag in _TIME_TAGS:
            found[tag >> 3] = int.from_bytes(field[1:], "little")
        elif tag in _LENGTH_TAGS and field[1] < 0x80:
            found[tag >> 3] = field[2:]
        elif tag == _KIND_TAG and len(field) == 2:
            found[_KIND] = field[1]
        else:
            found.update(
                (number, value)
                for number, wire_type, value in fields(field)
                if wire_type == _WIRE_TYPES.get(number)
            )
    trace_id = _identifier(found, _TRACE_ID, "span.trace_id")
    span_id = _identifier(found, _SPAN_ID, "span.span_id")
    if not any(trace_id) or not any(span_id):
        raise SpanError("trace id and span id must not be zero", "span.trace_id")
    parent = parent_id = b""
    if found.get(_PARENT_ID):
        parent_id = _identifier(found, _PARENT_ID, "span.parent_span_id")
        parent = b"\x22\x08" + parent_id
    start, end = _number(found, _START), _number(found, _END)
    if not 0 < start <= end < 1 << 63:
        raise SpanError(
            "a span starts before it ends, both since 1970", "span.start_time_unix_nano"
        )
    kind, code = _number(found, _KIND), _status(found.get(_STATUS, b""))
    failed = code == _STATUS_ERROR_CODE
    after = b"".join(
        (
            b"\x30" + bytes((kind,)) if kind <= _LAST_KIND else b"",
            b"\x39" + start.to_bytes(8, "little"),
            b"\x41" + end.to_bytes(8, "little"),
            STATUS_ERROR if failed else STATUS_OK if code else b"",
        )
    )
    if _FLAGS in found:
        after += b"\x85\x01" + (_number(found, _FLAGS) & _KNOWN_FLAGS).to_bytes(4, "little")
    before = b"\x0a\x10" + trace_id + b"\x12\x08" + span_id + parent
    return FixedFields(before, after, trace_id, span_id, parent_of(parent_id), start, failed)


def parent_of(span_id: bytes | None) -> bytes:
    """Return a parent's span id; empty for none, and for the zeroes that stand for none."""
    return span_id if span_id is not None and any(span_id) else b""


def _identifier(found: dict[int, bytes | int], number: int, field: str) -> bytes:
    value = found.get(number, b"")
    if not isinstance(value, bytes) or len(value) != _ID_SIZES[number]:
        raise SpanError(f"this id has {_ID_SIZES[number]} bytes", field)
    return value


def _number(found: dict[int, bytes | int], number: int) -> int:
    value = found.get(number, 0)
    return value if isinstance(value, int) else 0


def _status(status: bytes | int) -> int:
    """Return Status.code. Its message is free text and stays behind."""
    code = 0
    if isinstance(status, bytes):
        if len(status) == 2 and status[0] == _STATUS_CODE << 3:
            return status[1] if status[1] <= _STATUS_ERROR_CODE else 0
        for number, wire_type, value in fields(status):
            if number == _STATUS_CODE and wire_type == VARINT and isinstance(value, int):
                code = value
    return code if code <= _STATUS_ERROR_CODE else 0
