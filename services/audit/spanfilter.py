"""What of a span may enter the log: an allow-list, applied to the bytes of an OTLP Span.

Pure. A span goes in as bytes (opentelemetry.proto.trace.v1.Span) and comes out as bytes that were
put together anew from what is allowed: ids, times, kind, status code, and attributes whose names
are listed and whose values are of a simple type and bounded. Everything else stays behind: trace
state, events, links, status messages, unknown fields at every level. The name becomes the event
type, because a span's name is free text.

The same attribute comes with call after call (a model's name, a policy's digest), so what was
decided of its bytes is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from sealward.kit import attributes as names
from sealward.kit.spans import STATUS_ERROR, STATUS_OK, AttributeValue, attribute
from sealward.kit.wire import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    WireError,
    fields,
    read_varint,
    scan,
    string_field,
)

MAX_TEXT_BYTES = 256
"""Bytes of a string or bytes value; longer ones are dropped."""

MAX_ITEMS = 16
"""Strings in an array value."""

OTHER_SPAN = "otel.span"
"""The event type of a span that carries none: a step inside a call, not an event of its own."""

_EVENT_TYPE = re.compile(r"[a-z][a-z0-9-]{0,30}(\.[a-z][a-z0-9-]{0,30}){1,3}")
_PLAIN = re.compile(r"[\x20-\x7e\u00a0-\U0010ffff]*")

# Span fields.
_TRACE_ID, _SPAN_ID, _PARENT_ID = 1, 2, 4
_KIND, _START, _END, _STATUS, _FLAGS = 6, 7, 8, 15, 16
_ATTRIBUTE_TAG = 0x4A
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)
# bytes() of these fields with their tag, as they have to be.
_ID_SIZES = {_TRACE_ID: 16, _SPAN_ID: 8, _PARENT_ID: 8}
_STATUS_CODE = 3
_STATUS_ERROR_CODE = 2
_REMEMBERED = 8192


class SpanError(ValueError):
    """The bytes are not a span that can be recorded. The text names the field, never a value."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class FilteredSpan:
    """A span that passed. `body` is its serialised form; `values` its attributes by name.

    Times are nanoseconds since the epoch. `dropped` counts attributes that did not pass. `failed`
    is what its status says.
    """

    body: bytes
    values: dict[str, AttributeValue]
    trace_id: bytes
    span_id: bytes
    start: int
    event_type: str
    failed: bool
    dropped: int


class SpanFilter:
    """Filters spans of one kind of producer. Thread-safe: what is remembered is only a shortcut.

    `allowed` names the attributes that may pass.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(allowed) - names.AUDIT_ONLY
        self._known: dict[bytes, tuple[str, bytes, AttributeValue]] = {}
        self._heads: dict[str, bytes] = {}

    def filter(self, span: bytes) -> FilteredSpan:
        """Return what may be recorded of a span; raise SpanError."""
        try:
            return self._filter(span)
        except (WireError, IndexError, DecodeError, UnicodeDecodeError):
            raise SpanError("span is not a well-formed Span", "span") from None

    def _filter(self, span: bytes) -> FilteredSpan:
        known = self._known
        values: dict[str, AttributeValue] = {}
        parts: list[bytes] = []
        rest: list[bytes] = []
        dropped = 0
        pos, size = 0, len(span)
        while pos < size:
            if span[pos] != _ATTRIBUTE_TAG:
                begin, pos = pos, _next(span, pos)
                rest.append(span[begin:pos])
                continue
            length = span[pos + 1]
            start = pos + 2
            if length >= 0x80:
                length, start = read_varint(span, pos + 1, most=5)
            pos = start + length
            if pos > size:
                raise WireError("truncated field")
            raw = span[start:pos]
            found = known.get(raw) or self._decide(raw)
            if found is None or found[0] in values:
                dropped += 1
            else:
                values[found[0]] = found[2]
                parts.append(found[1])
        fixed = _Fixed(b"".join(rest))
        event_type = values.get(names.EVENT_TYPE, OTHER_SPAN)
        if not isinstance(event_type, str):
            raise SpanError("the event type is not text", "span.attributes.sealward.event.type")
        head = self._heads.get(event_type) or self._head(event_type)
        body = b"".join((*fixed.ids, head, *fixed.others, *parts))
        return FilteredSpan(
            body, values, fixed.trace_id, fixed.span_id, fixed.start, event_type, fixed.failed,
            dropped,
        )  # fmt: skip

    def _head(self, event_type: str) -> bytes:
        if not _EVENT_TYPE.fullmatch(event_type):
            raise SpanError("the event type is not of its form", "sealward.event.type")
        if len(self._heads) >= _REMEMBERED:
            self._heads.clear()
        head = self._heads[event_type] = string_field(5, event_type)
        return head

    def _decide(self, raw: bytes) -> tuple[str, bytes, AttributeValue] | None:
        pair = KeyValue.FromString(raw)
        if pair.key not in self._allowed:
            return None
        value = _value_of(pair.value)
        if value is None:
            return None
        # Written anew, so that nothing hides in fields that we do not know.
        decided = (pair.key, attribute(pair.key, value), value)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[raw] = decided
        return decided


class _Fixed:
    """The fields of a span beside its attributes, checked and written anew."""

    __slots__ = ("failed", "ids", "others", "span_id", "start", "trace_id")

    def __init__(self, rest: bytes) -> None:
        # Of a repeated field the last one counts, as everywhere in protobuf.
        found = {
            number: value
            for number, wire_type, value in fields(rest)
            if wire_type == _WIRE_TYPES.get(number)
        }
        self.trace_id = _identifier(found, _TRACE_ID, "span.trace_id")
        self.span_id = _identifier(found, _SPAN_ID, "span.span_id")
        if self.trace_id == _NO_TRACE or self.span_id == _NO_SPAN:
            raise SpanError("trace id and span id must not be zero", "span.trace_id")
        ids = [b"\x0a\x10", self.trace_id, b"\x12\x08", self.span_id]
        if found.get(_PARENT_ID):
            ids += [b"\x22\x08", _identifier(found, _PARENT_ID, "span.parent_span_id")]
        self.ids = ids
        self.start, end = _number(found, _START), _number(found, _END)
        if not 0 < self.start <= end < 1 << 63:
            raise SpanError(
                "a span starts before it ends, both since 1970", "span.start_time_unix_nano"
            )
        kind = _number(found, _KIND)
        code = _status(found.get(_STATUS, b""))
        self.failed = code == _STATUS_ERROR_CODE
        self.others = [
            b"\x30" + bytes((kind,)) if kind <= 5 else b"",
            b"\x39" + self.start.to_bytes(8, "little"),
            b"\x41" + end.to_bytes(8, "little"),
            STATUS_ERROR if self.failed else STATUS_OK if code else b"",
        ]
        if _FLAGS in found:
            # Trace flags and the two bits of SpanFlags; the rest is reserved.
            flags = _number(found, _FLAGS) & 0x3FF
            self.others.append(b"\x85\x01" + flags.to_bytes(4, "little"))


_WIRE_TYPES = {
    _TRACE_ID: BYTES, _SPAN_ID: BYTES, _PARENT_ID: BYTES, _KIND: VARINT, _START: FIXED64,
    _END: FIXED64, _STATUS: BYTES, _FLAGS: FIXED32,
}  # fmt: skip


def _identifier(found: dict[int, bytes | int], number: int, field: str) -> bytes:
    value = found.get(number, b"")
    if not isinstance(value, bytes) or len(value) != _ID_SIZES[number]:
        raise SpanError(f"this id has {_ID_SIZES[number]} bytes", field)
    return value


def _number(found: dict[int, bytes | int], number: int) -> int:
    value = found.get(number, 0)
    return value if isinstance(value, int) else 0


def _status(status: bytes | int) -> int:
    code = 0
    if isinstance(status, bytes):
        for number, wire_type, value in fields(status):
            if number == _STATUS_CODE and wire_type == VARINT and isinstance(value, int):
                code = value
    return code if code <= _STATUS_ERROR_CODE else 0


def _next(span: bytes, pos: int) -> int:
    """Return the position after the field at `pos`."""
    tag = span[pos]
    if tag in (0x39, 0x41):
        end = pos + 9
    elif tag in (0x0A, 0x12, 0x22) and span[pos + 1] < 0x80:
        end = pos + 2 + span[pos + 1]
    else:
        # scan() reads one field and is left.
        piece = next(scan(span[pos:]), None)
        if piece is None:
            raise WireError("truncated field")
        number, wire_type, _, end = piece
        if wire_type not in (VARINT, FIXED32, FIXED64, BYTES) or not number:
            raise WireError("groups are not used")
        end += pos
    if end > len(span):
        raise WireError("truncated field")
    return end


def _value_of(value: AnyValue) -> AttributeValue | None:
    kind = value.WhichOneof("value")
    if kind in ("bool_value", "int_value", "double_value"):
        number: bool | int | float = getattr(value, kind)
        return number
    if kind == "string_value" and _bounded(value.string_value):
        return value.string_value
    if kind == "bytes_value" and len(value.bytes_value) <= MAX_TEXT_BYTES:
        return value.bytes_value
    if kind == "array_value":
        items = value.array_value.values
        texts = [item.string_value for item in items if item.WhichOneof("value") == "string_value"]
        if len(texts) == len(items) <= MAX_ITEMS and _bounded("".join(texts)):
            return tuple(texts)
    return None


def _bounded(text: str) -> bool:
    return len(text.encode()) <= MAX_TEXT_BYTES and _PLAIN.fullmatch(text) is not None
