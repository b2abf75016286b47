"""What of a span may enter the log: an allow-list, applied to the bytes of an OTLP Span.

Pure. A span goes in as bytes (opentelemetry.proto.trace.v1.Span) and comes out as bytes that hold
nothing but what is allowed: ids, times, kind, status code, and attributes whose names are listed
and whose values are of a simple type and bounded. Everything else stays behind: trace state,
events, links, status messages, unknown fields at every level. The name becomes the event type,
because a span's name is free text.

A field is either recognised as being in its only possible form, and then taken as it is, or read
and written anew. The first is what every span of our own services gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from sealward.kit import attributes as names
from sealward.kit.spans import AttributeValue
from sealward.kit.wire import WireError, string_field
from services.audit.spanattributes import AttributeReader
from services.audit.spanfields import SpanError, next_field, parent_of, read_fixed

OTHER_SPAN = "otel.span"
"""The event type of a span that carries none: a step inside a call, not an event of its own."""

_EVENT_TYPE = re.compile(r"[a-z][a-z0-9-]{0,30}(\.[a-z][a-z0-9-]{0,30}){1,3}")
_NAMES_REMEMBERED = 1024
_SHAPES = 1024
_SHAPE_BYTES = 4096
_SEEN = 65_536

# The fields before the attributes as SpanHead (kit/spans.py) and every protobuf library write them:
# ids, flags (in the former), name, kind, times. A name in these letters cannot hold what follows.
_HEAD = re.compile(
    rb"\x0a\x10(?P<trace>.{16})\x12\x08(?P<span>.{8})(?:\x22\x08(?P<parent>.{8}))?"
    rb"(?P<flags>\x85\x01.[\x00-\x03]\x00\x00)?"
    rb"(?P<name>\x2a[\x03-\x7f][a-z.-]+)\x30[\x00-\x05]\x39(?P<start>.{8})\x41(?P<end>.{8})",
    re.DOTALL,
)
# The fields after them: status without a message, flags.
_TAIL = re.compile(
    rb"(?:\x7a\x02\x18(?P<code>[\x01\x02]))?(?P<flags>\x85\x01.[\x00-\x03]\x00\x00)?",
    re.DOTALL,
)
_ERROR = b"\x02"


class Shape:
    """What follows the ids and times of spans that are alike: decided once for all of them.

    `rows` is for what others derive from it, by whom they derive it for.
    """

    __slots__ = ("dropped", "event_type", "failed", "fields", "flags", "name", "rows", "values")

    def __init__(self, span: FilteredSpan, name: bytes, fields: bytes, *, flags: bool) -> None:
        self.name = name
        self.fields = fields
        self.flags = flags
        self.values = span.values
        self.event_type = span.event_type
        self.failed = span.failed
        self.dropped = span.dropped
        self.rows: dict[str, tuple[Any, ...]] = {}


class FilteredSpan(NamedTuple):
    """A span that passed. `body` is its serialised form; `values` its attributes by name.

    Times are nanoseconds since the epoch; a root span has no `parent_id`. `dropped` counts
    attributes that did not pass. `failed` is what its status says. `shape` is there when another
    span with the same attributes was seen; its values are shared and must not be changed.
    """

    body: bytes
    values: dict[str, AttributeValue]
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    start: int
    event_type: str
    failed: bool
    dropped: int
    shape: Shape | None = None


class SpanFilter:
    """Filters spans of one kind of producer. Thread-safe: what is remembered is only a shortcut.

    `allowed` names the attributes that may pass; `replaced` those that audit writes itself and that
    are left out without being counted as dropped. `audit_only` lets those pass that audit has
    written, for a span that comes from the log.
    """

    def __init__(
        self, allowed: Iterable[str], replaced: Iterable[str] = (), *, audit_only: bool = False
    ) -> None:
        barred = frozenset() if audit_only else names.AUDIT_ONLY
        # What is in the log stays as it is: also what came before an attribute had a form.
        self._attributes = AttributeReader(
            frozenset(allowed) - barred, replaced, formed=not audit_only
        )
        self._names: dict[str, bytes] = {}
        # By the bytes after ids and times. A shape is worth keeping when it was seen before.
        self._shapes: dict[bytes, Shape] = {}
        self._seen: set[int] = set()

    def filter(self, span: bytes) -> FilteredSpan:
        """Return what may be recorded of a span; raise SpanError."""
        try:
            return self._filter(span)
        except (WireError, IndexError, DecodeError, UnicodeDecodeError):
            raise SpanError("span is not a well-formed Span", "span") from None

    def _filter(self, span: bytes) -> FilteredSpan:
        head = _HEAD.match(span)
        begin = head.end() if head else 0
        shape = self._shapes.get(span[begin:]) if head else None
        if head and shape and head["name"] == shape.name and not (head["flags"] and shape.flags):
            trace_id, span_id = head["trace"], head["span"]
            start = int.from_bytes(head["start"], "little")
            end = int.from_bytes(head["end"], "little")
            if any(trace_id) and any(span_id) and 0 < start <= end < 1 << 63:
                return FilteredSpan(
                    head[0] + shape.fields, shape.values, trace_id, span_id,
                    parent_of(head["parent"]), start, shape.event_type, shape.failed,
                    shape.dropped, shape,
                )  # fmt: skip
        rest, values, parts, dropped = self._attributes.read(span, begin)
        event_type = values.get(names.EVENT_TYPE, OTHER_SPAN)
        if not isinstance(event_type, str):
            raise SpanError("the event type is not text", names.EVENT_TYPE)
        name = self._names.get(event_type) or self._name(event_type)
        tail = _TAIL.fullmatch(b"".join(rest))
        if head and tail and head["name"] == name and not (head["flags"] and tail["flags"]):
            trace_id, span_id = head["trace"], head["span"]
            start = int.from_bytes(head["start"], "little")
            end = int.from_bytes(head["end"], "little")
            if any(trace_id) and any(span_id) and 0 < start <= end < 1 << 63:
                fields = b"".join((*parts, tail[0]))
                failed = tail["code"] == _ERROR
                found = FilteredSpan(
                    head[0] + fields, values, trace_id, span_id, parent_of(head["parent"]), start,
                    event_type, failed, dropped,
                )  # fmt: skip
                self._remember(span[begin:], Shape(found, name, fields, flags=bool(tail["flags"])))
                return found
        fixed = read_fixed([*_split(span[:begin]), *rest])
        body = b"".join((fixed.before, name, fixed.after, *parts))
        return FilteredSpan(
            body, values, fixed.trace_id, fixed.span_id, fixed.parent_id, fixed.start, event_type,
            fixed.failed, dropped,
        )  # fmt: skip

    def _remember(self, tail: bytes, shape: Shape) -> None:
        if len(tail) > _SHAPE_BYTES:
            return
        key = hash(tail)
        if key not in self._seen:
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            self._seen.add(key)
            return
        if len(self._shapes) >= _SHAPES:
            self._shapes.clear()
        self._shapes[tail] = shape

    def _name(self, event_type: str) -> bytes:
        if not _EVENT_TYPE.fullmatch(event_type):
            raise SpanError("the event type is not of its form", names.EVENT_TYPE)
        if len(self._names) >= _NAMES_REMEMBERED:
            self._names.clear()
        name = self._names[event_type] = string_field(5, event_type)
        return name


def _split(span: bytes) -> list[bytes]:
    """Split bytes into fields; raise WireError."""
    found = []
    pos = 0
    while pos < len(span):
        end = next_field(span, pos)
        found.append(span[pos:end])
        pos = end
    return found
