"""OpenTelemetry spans written as OTLP bytes, without the SDK and without protobuf objects.

A span of the SDK costs more than the inference that it describes. What does not change between the
calls of a session, of a model or of a policy decision is encoded once and joined; the rest is
written per call. The result is a serialised opentelemetry.proto.trace.v1.Span (opentelemetry-proto
v1, trace.proto), the same as the SDK's exporter would send.

Which attributes may be there is decided elsewhere: by the allow-list at the exporter and again at
the audit service.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from sealward.kit.wire import bytes_field, fixed32_field, string_field, varint, varint_field

AttributeValue = str | bool | int | float | bytes | Sequence[str]

# Span: attributes = 9; KeyValue: key = 1, value = 2; AnyValue: one field per type.
_ATTRIBUTES = 9
_KEY, _VALUE = 1, 2
_STRING, _BOOL, _INT, _DOUBLE, _ARRAY, _BYTES = 1, 2, 3, 4, 5, 7
_ARRAY_VALUES = 1

_U64 = struct.Struct("<Q")
_DOUBLE_FIELD = struct.Struct("<Bd")
_MASK64 = 2**64 - 1
_CACHED_INTS = 1024
_TRACE_BYTES = 24

# Tags with lengths of the fixed-size fields: trace_id = 1, span_id = 2, parent_span_id = 4,
# start_time_unix_nano = 7, end_time_unix_nano = 8.
_TRACE = b"\x0a\x10"
_SPAN = b"\x12\x08"
_PARENT = b"\x22\x08"
_START = b"\x39"
_END = b"\x41"
# flags = 16 (fixed32), SpanFlags: W3C "sampled", HAS_IS_REMOTE, IS_REMOTE.
_FLAGS_ROOT = fixed32_field(16, 0x101)
_FLAGS_REMOTE = fixed32_field(16, 0x301)
# status = 15: Status{code = 3}; STATUS_CODE_OK = 1, STATUS_CODE_ERROR = 2. Never a message.
STATUS_OK = bytes_field(15, varint_field(3, 1))
STATUS_ERROR = bytes_field(15, varint_field(3, 2))


class SpanKind(IntEnum):
    """Span.SpanKind."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


@dataclass(frozen=True, slots=True)
class TraceParent:
    """Where a caller's trace stands: 16-byte trace id, 8-byte span id of the caller's span."""

    trace_id: bytes
    span_id: bytes

    @property
    def encoded(self) -> bytes:
        """The two joined, as they go between our services."""
        return self.trace_id + self.span_id

    @classmethod
    def decoded(cls, data: bytes) -> TraceParent | None:
        """Read what `encoded` gives; None for anything else."""
        if len(data) != _TRACE_BYTES or not any(data[:16]) or not any(data[16:]):
            return None
        return cls(data[:16], data[16:])


def parse_traceparent(text: str) -> TraceParent | None:
    """Parse a `traceparent` (W3C Trace Context section 3.2); None when it is not of its form.

    A bad one is not an error: the specification asks to start a new trace then.
    """
    parts = text.split("-")
    if len(parts) < 4 or len(parts[0]) != 2 or parts[0] == "ff":
        return None
    if parts[0] == "00" and len(parts) != 4:
        return None
    lengths = (len(parts[1]), len(parts[2]), len(parts[3]))
    if lengths != (32, 16, 2) or text != text.lower() or not text.isascii():
        return None
    try:
        int(parts[0], 16), int(parts[3], 16)
        trace_id, span_id = bytes.fromhex(parts[1]), bytes.fromhex(parts[2])
    except ValueError:
        return None
    if len(trace_id) != 16 or len(span_id) != 8 or not any(trace_id) or not any(span_id):
        return None
    return TraceParent(trace_id, span_id)


def attribute(key: str, value: AttributeValue) -> bytes:
    """Encode one attribute as a field of a Span. Fields may be joined in any order."""
    pair = string_field(_KEY, key) + bytes_field(_VALUE, _any_value(value))
    return bytes_field(_ATTRIBUTES, pair)


def _any_value(value: AttributeValue) -> bytes:
    if isinstance(value, str):
        return string_field(_STRING, value)
    if isinstance(value, bool):
        return varint_field(_BOOL, value)
    if isinstance(value, int):
        return varint_field(_INT, value)
    if isinstance(value, float):
        return _DOUBLE_FIELD.pack(_DOUBLE << 3 | 1, value)
    if isinstance(value, bytes):
        return bytes_field(_BYTES, value)
    items = b"".join(bytes_field(_ARRAY_VALUES, string_field(_STRING, item)) for item in value)
    return bytes_field(_ARRAY, items)


class IntAttribute:
    """An integer attribute with its key encoded once; small values are kept encoded."""

    __slots__ = ("_key", "_small")

    def __init__(self, key: str) -> None:
        self._key = string_field(_KEY, key)
        self._small: dict[int, bytes] = {}

    def encode(self, value: int) -> bytes:
        """Encode the attribute with this value (int64)."""
        known = self._small.get(value)
        if known is not None:
            return known
        number = varint(value & _MASK64)
        any_value = b"\x18" + number
        pair = self._key + b"\x12" + varint(len(any_value)) + any_value
        field = b"\x4a" + varint(len(pair)) + pair
        if 0 <= value < _CACHED_INTS:
            self._small[value] = field
        return field


class TextAttribute:
    """A string attribute with its key encoded once, and with a value of one fixed size.

    For event ids and the like, whose lengths never change: `size` is in bytes.
    """

    __slots__ = ("_head", "_size")

    def __init__(self, key: str, size: int) -> None:
        whole = attribute(key, "x" * size)
        self._head = whole[: len(whole) - size]
        self._size = size

    def encode(self, value: bytes) -> bytes:
        """Encode the attribute; `value` is ASCII text of the fixed size."""
        if len(value) != self._size:
            raise ValueError("the value is not of its fixed size")
        return self._head + value


class SpanHead:
    """Name and kind of a span, encoded once."""

    __slots__ = ("_head",)

    def __init__(self, name: str, kind: SpanKind = SpanKind.SERVER) -> None:
        self._head = string_field(5, name) + varint_field(6, kind)

    def build(
        self,
        start_unix_nano: int,
        end_unix_nano: int,
        parts: Sequence[bytes],
        *,
        parent: TraceParent | None = None,
        span_id: bytes | None = None,
    ) -> bytes:
        """Return the serialised Span.

        `parts` are encoded attributes and a status (`attribute`, `IntAttribute.encode`,
        `STATUS_OK`, …). Without a parent the span begins a trace of its own. `span_id` is 8 bytes,
        drawn when not given.
        """
        if parent is None:
            # One draw for both ids; all zero is invalid and will not come up.
            drawn = secrets.token_bytes(24)
            ids: tuple[bytes, ...] = (
                _TRACE, drawn[:16], _SPAN, span_id or drawn[16:], _FLAGS_ROOT,
            )  # fmt: skip
        else:
            own = span_id or secrets.token_bytes(8)
            ids = (
                _TRACE, parent.trace_id, _SPAN, own, _PARENT, parent.span_id, _FLAGS_REMOTE,
            )  # fmt: skip
        times = (_START, _U64.pack(start_unix_nano), _END, _U64.pack(end_unix_nano))
        return b"".join((*ids, self._head, *times, *parts))
