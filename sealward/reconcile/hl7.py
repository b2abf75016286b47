"""Event ids in HL7 v2 messages and batches (HL7 v2.9, chapter 2).

An event id is every UUID of version 7 (or 8, for exported spans) in the configured fields, by
default OBX-18 (equipment instance identifier), NTE-3 (comment) and every field of a Z-segment,
wherever in a field it stands: repetition, component, text. Other UUIDs there are not ours.

Segments end with a carriage return; line feeds, and the framing of MLLP, are taken as well. They
are counted from 1 over the whole file. The separators are those of each message's own MSH.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from sealward.reconcile.items import Found, Item, ListError, Malformed, Other, ids_in

DEFAULT_FIELDS = ("OBX-18", "NTE-3", "Z*")

_HEADERS = ("MSH", "FHS", "BHS")
_TRAILERS = ("BTS", "FTS")
_FRAMING = "\x0b\x1c\x00 \t"
_SEGMENT = re.compile(r"[A-Z][A-Z0-9]{2}")
_FIELD = re.compile(r"([A-Z][A-Z0-9]{2}|[A-Z][A-Z0-9]?\*)(?:-([1-9][0-9]{0,2}))?")


class Fields:
    """Which fields may hold event ids: `OBX-18` one field, `NTE` all of a segment, `Z*` of many."""

    def __init__(self, names: Sequence[str] = DEFAULT_FIELDS) -> None:
        """Take the names; raise ListError for one that is no field."""
        self._wanted: list[tuple[str, bool, int]] = []
        for name in names:
            match = _FIELD.fullmatch(name.strip().upper())
            if match is None:
                raise ListError("a field is written as OBX-18, NTE or Z*")
            segment = match[1]
            self._wanted.append((segment.rstrip("*"), segment.endswith("*"), int(match[2] or 0)))

    def of(self, segment: str, fields: Sequence[str]) -> Iterator[str]:
        """Yield the fields of a segment that may hold one; `fields` begins with field 1."""
        for name, prefix, number in self._wanted:
            if not (segment.startswith(name) if prefix else segment == name):
                continue
            if not number:
                yield from fields
            elif number <= len(fields):
                yield fields[number - 1]


def read_segments(lines: Iterable[tuple[int, str | None]], fields: Fields) -> Iterator[Found]:
    """Read numbered segments. A message without an id of ours is named by its MSH."""
    message: _Message | None = None
    separator = ""
    for number, line in lines:
        text = "" if line is None else line.strip(_FRAMING)
        if line is not None and not text:
            continue
        name = text[:3]
        if _begins(text) or name in _TRAILERS:
            if message is not None and not message.seen:
                yield Other(message.number)
            separator = text[3] if _begins(text) else separator
            message = _Message(number) if name == "MSH" else None
        elif message is None or not _SEGMENT.fullmatch(name) or text[3:4] not in ("", separator):
            yield Malformed(number)
        else:
            for value in fields.of(name, text.split(separator)[1:]):
                yield from message.items(number, value)
    if message is not None and not message.seen:
        yield Other(message.number)


class _Message:
    """A message under way: where it began, and the ids that it has named."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen: set[bytes] = set()

    def items(self, number: int, value: str) -> Iterator[Item]:
        """Yield the ids of a field; a result may name its event in several places."""
        for event_id in ids_in(value):
            if event_id not in self.seen:
                self.seen.add(event_id)
                yield Item(number, event_id)


def _begins(text: str) -> bool:
    """Whether a segment begins a message or a batch: it names the separators first."""
    return (
        text[:3] in _HEADERS and len(text) > 8 and not text[3].isalnum() and text[3].isprintable()
    )
