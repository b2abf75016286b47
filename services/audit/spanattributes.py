"""The attributes of an OTLP Span, read from its bytes through an allow-list. Pure.

The same attributes come with call after call (a model's name, a policy's digest, the actor of a
session), most of them side by side and in the same order. What was decided of an attribute's bytes
is remembered, and so are runs of them, which are then recognised by one comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from sealward.kit import attributes as names
from sealward.kit.spans import AttributeValue, attribute
from sealward.kit.wire import WireError, read_varint
from services.audit.spanfields import next_field

MAX_TEXT_BYTES = 256
"""Bytes of a string or bytes value; longer ones are dropped."""

MAX_ITEMS = 16
"""Strings in an array value."""

_WORD = re.compile(r"[\x21-\x7e]*")
_PLAIN = re.compile(r"[\x20-\x7e\u00a0-\U0010ffff]*")
_ATTRIBUTE_TAG = 0x4A
_KEY_TAG, _VALUE_TAG, _TEXT_TAG, _INT_TAG = 0x0A, 0x12, 0x0A, 0x18
_REMEMBERED = 8192
_SHORTEST_RUN = 3
# Different in every call: remembering them would only push out the others.
_UNIQUE = frozenset({names.EVENT_ID, names.PRODUCER_SEQ, names.CALLER_SEQ, names.TARGET})


class _Decided(NamedTuple):
    """An attribute that may pass. `field` is what is written of it; no name = left out."""

    name: str
    field: bytes
    value: AttributeValue


class _Run(NamedTuple):
    """What follows an attribute: the bytes as they came, what is written, the values by name."""

    raw: bytes
    fields: bytes
    values: dict[str, AttributeValue]


Read = tuple[list[bytes], dict[str, AttributeValue], list[bytes], int]
_Streak = list[tuple[bytes, _Decided]]
_LEFT_OUT = _Decided("", b"", 0)


class AttributeReader:
    """Reads attributes. Thread-safe: what is remembered is only a shortcut.

    `formed` asks for the form that an attribute has (names.WORDS, names.NUMBERS).
    """

    def __init__(
        self, allowed: Iterable[str], replaced: Iterable[str] = (), *, formed: bool = True
    ) -> None:
        self._words = names.WORDS if formed else frozenset[str]()
        self._numbers = names.NUMBERS if formed else frozenset[str]()
        self._replaced = frozenset(replaced)
        self._allowed = frozenset(allowed) - self._replaced
        self._allowed_bytes = {name.encode(): name for name in self._allowed}
        self._known: dict[bytes, _Decided] = {}
        self._runs: dict[bytes, _Run] = {}

    def read(self, span: bytes, pos: int) -> Read:
        """Read a span from `pos` on.

        Return the fields that are no attributes (each with its tag), the values of the attributes
        that may pass, the fields to write for them, and how many may not. Of a name that is there
        twice the first counts. Raise WireError, DecodeError or IndexError.
        """
        known, runs = self._known, self._runs
        rest: list[bytes] = []
        values: dict[str, AttributeValue] = {}
        parts: list[bytes] = []
        # Remembered attributes side by side, and where they end.
        streak: _Streak = []
        streak_end = -1
        dropped = 0
        size = len(span)
        while pos < size:
            begin = pos
            if span[pos] != _ATTRIBUTE_TAG:
                pos = next_field(span, pos)
                rest.append(span[begin:pos])
                continue
            start, pos = _content(span, pos + 1)
            raw = span[begin:pos]
            found = known.get(raw)
            remembered = found is not None
            if found is None:
                found = self._decide(raw, span[start:pos])
            if found is _LEFT_OUT:
                continue
            if found is None or found.name in values:
                dropped += 1
                continue
            values[found.name] = found.value
            parts.append(found.field)
            run = runs.get(raw)
            if run and span.startswith(run.raw, pos) and values.keys().isdisjoint(run.values):
                values.update(run.values)
                parts.append(run.fields)
                pos += len(run.raw)
                streak_end = -1
            elif remembered:
                if begin != streak_end:
                    self._learn(streak)
                    streak = []
                streak.append((raw, found))
                streak_end = pos
        self._learn(streak)
        return rest, values, parts, dropped

    def _learn(self, streak: _Streak) -> None:
        """Remember a run, or as much of it as it has in common with the one known so far."""
        if len(streak) < _SHORTEST_RUN:
            return
        first = streak[0][0]
        known = self._runs.get(first)
        if known:
            raw = known.raw
            same = 1
            for field, _ in streak[1:]:
                if not raw.startswith(field):
                    break
                raw = raw[len(field) :]
                same += 1
            if same >= _SHORTEST_RUN:
                streak = streak[:same]
        if len(self._runs) >= _REMEMBERED:
            self._runs.clear()
        self._runs[first] = _Run(
            b"".join(raw for raw, _ in streak[1:]),
            b"".join(decided.field for _, decided in streak[1:]),
            {decided.name: decided.value for _, decided in streak[1:]},
        )

    def _decide(self, raw: bytes, pair: bytes) -> _Decided | None:
        """Decide about an attribute: `raw` is the whole field, `pair` its KeyValue."""
        decided = self._plain(raw, pair) or self._any(pair)
        if decided is not None and decided.name not in _UNIQUE:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[raw] = decided
        return decided

    def _plain(self, raw: bytes, pair: bytes) -> _Decided | None:
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
                return _Decided(name, raw, value) if self._has_form(name, value) else None
        # At most nine bytes: positive, and only one way to write it if the last is not zero.
        elif pair[at + 2] == _INT_TAG and size - at <= 12 and (pair[-1] or size - at == 4):
            number, end = read_varint(pair, at + 3)
            if end == size and name not in self._words:
                return _Decided(name, raw, number)
        return None

    def _any(self, pair: bytes) -> _Decided | None:
        parsed = KeyValue.FromString(pair)
        if parsed.key in self._replaced:
            return _LEFT_OUT
        if parsed.key not in self._allowed:
            return None
        value = _value_of(parsed.value)
        if value is None or not self._has_form(parsed.key, value):
            return None
        # Written anew, so that nothing hides in fields that we do not know.
        return _Decided(parsed.key, attribute(parsed.key, value), value)

    def _has_form(self, name: str, value: AttributeValue) -> bool:
        if name in self._words:
            return isinstance(value, str) and _WORD.fullmatch(value) is not None
        return name not in self._numbers or type(value) is int


def _content(span: bytes, pos: int) -> tuple[int, int]:
    """Return where the content of a field begins and ends whose length is at `pos`."""
    length = span[pos]
    start = pos + 1
    if length >= 0x80:
        length, start = read_varint(span, pos, most=5)
    if start + length > len(span):
        raise WireError("truncated field")
    return start, start + length


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
