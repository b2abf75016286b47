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
from typing import NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from sealward.kit import attributes as names
from sealward.kit.spans import AttributeValue, attribute
from sealward.kit.wire import WireError, read_varint, string_field
from services.audit.spanfields import SpanError, next_field, read_fixed

MAX_TEXT_BYTES = 256
"""Bytes of a string or bytes value; longer ones are dropped."""

MAX_ITEMS = 16
"""Strings in an array value."""

OTHER_SPAN = "otel.span"
"""The event type of a span that carries none: a step inside a call, not an event of its own."""

_EVENT_TYPE = re.compile(r"[a-z][a-z0-9-]{0,30}(\.[a-z][a-z0-9-]{0,30}){1,3}")
_PLAIN = re.compile(r"[\x20-\x7e\u00a0-\U0010ffff]*")

_ATTRIBUTE_TAG = 0x4A
_KEY_TAG, _VALUE_TAG, _TEXT_TAG, _INT_TAG = 0x0A, 0x12, 0x0A, 0x18
_REMEMBERED = 8192
# Different in every call: remembering them would only push out the others.
_UNIQUE = frozenset({names.EVENT_ID, names.PRODUCER_SEQ, names.CALLER_SEQ, names.TARGET})


class FilteredSpan(NamedTuple):
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
        self._allowed_bytes = {name.encode(): name for name in self._allowed}
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
            begin = pos
            if span[pos] != _ATTRIBUTE_TAG:
                pos = next_field(span, pos)
                rest.append(span[begin:pos])
                continue
            length = span[pos + 1]
            start = pos + 2
            if length >= 0x80:
                length, start = read_varint(span, pos + 1, most=5)
            pos = start + length
            if pos > size:
                raise WireError("truncated field")
            raw = span[begin:pos]
            found = known.get(raw) or self._decide(raw, span[start:pos])
            if found is None or found[0] in values:
                dropped += 1
            else:
                values[found[0]] = found[2]
                parts.append(found[1])
        event_type = values.get(names.EVENT_TYPE, OTHER_SPAN)
        if not isinstance(event_type, str):
            raise SpanError("the event type is not text", names.EVENT_TYPE)
        head = self._heads.get(event_type) or self._head(event_type)
        fixed = read_fixed(rest)
        body = b"".join((fixed.before, head, fixed.after, *parts))
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

    def _decide(self, raw: bytes, pair: bytes) -> tuple[str, bytes, AttributeValue] | None:
        """Decide about an attribute: `raw` is the whole field, `pair` its KeyValue."""
        decided = self._plain(raw, pair) or self._any(pair)
        if decided is not None and decided[0] not in _UNIQUE:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[raw] = decided
        return decided

    def _plain(self, raw: bytes, pair: bytes) -> tuple[str, bytes, AttributeValue] | None:
        """Take an attribute as it is, if it is a short ASCII text or a number in its only form.

        That form is `key, value{string_value or int_value}` with one-byte lengths and nothing else,
        so that there is nothing to write anew.
        """
        size = len(pair)
        if not 6 <= size < 0x80 or len(raw) != size + 2 or pair[0] != _KEY_TAG:
            return None
        at = 2 + pair[1]
        if at + 4 > size or pair[at] != _VALUE_TAG or pair[at + 1] != size - at - 2:
            return None
        name = self._allowed_bytes.get(pair[2:at])
        if name is None:
            return None
        if pair[at + 2] == _TEXT_TAG and pair[at + 3] == size - at - 4:
            text = pair[at + 4 :]
            if text.isascii() and (value := text.decode("ascii")).isprintable():
                return name, raw, value
        # At most nine bytes: positive, and only one way to write it if the last is not zero.
        elif pair[at + 2] == _INT_TAG and size - at <= 12 and (pair[-1] or size - at == 4):
            number, end = read_varint(pair, at + 3)
            if end == size:
                return name, raw, number
        return None

    def _any(self, pair: bytes) -> tuple[str, bytes, AttributeValue] | None:
        parsed = KeyValue.FromString(pair)
        if parsed.key not in self._allowed:
            return None
        value = _value_of(parsed.value)
        if value is None:
            return None
        # Written anew, so that nothing hides in fields that we do not know.
        return parsed.key, attribute(parsed.key, value), value


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
    # Not isprintable(): a no-break space may stand in a name.
    return len(text.encode()) <= MAX_TEXT_BYTES and _PLAIN.fullmatch(text) is not None
