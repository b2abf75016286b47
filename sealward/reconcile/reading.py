"""Finds out by its content what kind of list a file is, and reads it in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sealward.reconcile import fhir, hl7, tables
from sealward.reconcile.items import Found, ItemError, ListError, Malformed, Other, read_id

LARGEST_DOCUMENT = 32 << 20
"""Bytes of a file that is one JSON document; lists of lines have no bound."""

LONGEST_LINE = 16 << 20

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_LOOK = 64 << 10
_LINES_LOOKED_AT = 100
_HL7_MARKS = (b"MSH", b"FHS", b"BHS")

Numbered = Iterator[tuple[int, str | None]]
Progress = Callable[[int], None]
"""Told how many bytes of the file were read so far."""


@dataclass(frozen=True, slots=True)
class List:
    """A list that was recognised: what form it has, what its `line` numbers count, its content."""

    form: str
    unit: str
    found: Iterator[Found]


def open_list(file: BinaryIO, fields: hl7.Fields, progress: Progress = lambda _bytes: None) -> List:
    """Recognise a list by its content; raise ListError for a file that is none.

    `fields` are those of HL7 messages that may hold event ids.
    """
    head = file.read(_LOOK).removeprefix(_BOM)
    file.seek(0)
    start = head.lstrip(b"\x0b\x1c \t\r\n")
    if not start:
        raise ListError("the file is empty")
    if start[:3] in _HL7_MARKS and len(start) > 3 and not start[3:4].isalnum():
        segments = _lines(file, progress, carriage_returns=True, encoding="latin-1")
        return List("hl7", "segment", hl7.read_segments(segments, fields))
    if start[:1] in (b"{", b"["):
        return _json(file, progress)
    first = start.splitlines()[0].decode("utf-8", "replace")
    found = tables.columns_of(first)
    if found is not None:
        lines = _lines(file, progress)
        _past_heading(lines)
        return List("csv", "line", tables.read_csv(lines, *found))
    if _is_plain(start):
        return List("ids", "line", tables.read_plain(_lines(file, progress)))
    raise ListError(
        "neither a list of calls, FHIR, HL7, a table with a column event_id, nor one id a line"
    )


def open_path(
    path: Path, fields: hl7.Fields, progress: Progress = lambda _bytes: None
) -> tuple[BinaryIO, List]:
    """As `open_list`; the caller closes the file. Raises OSError as well."""
    file = path.open("rb")
    try:
        return file, open_list(file, fields, progress)
    except BaseException:
        file.close()
        raise


def _json(file: BinaryIO, progress: Progress) -> List:
    """Tell JSON lines from one document."""
    first = b""
    while not first.strip(_BOM + b" \t\r\n"):
        first = file.readline(LONGEST_LINE)
    value = _parsed(first)
    alone = not file.read(_LOOK).strip()
    file.seek(0)
    if isinstance(value, dict) and not alone:
        return List(_form(value), "line", _objects(_lines(file, progress)))
    data = file.read(LARGEST_DOCUMENT + 1)
    whole = _parsed(data) if len(data) <= LARGEST_DOCUMENT else None
    if whole is not None:
        progress(len(data))
        return List(_form(whole), "entry", _document(whole))
    # Lines of which the first is spoilt, or a document that is spoilt or too large.
    if any(isinstance(_parsed(text), dict) for text in data.split(b"\n", _LINES_LOOKED_AT)[1:-1]):
        file.seek(0)
        return List("ndjson", "line", _objects(_lines(file, progress)))
    if len(data) > LARGEST_DOCUMENT:
        raise ListError(
            f"one JSON document of more than {LARGEST_DOCUMENT >> 20} MiB:"
            " write one resource or object a line"
        )
    raise ListError("the file is not JSON, and its lines are not either")


def _parsed(data: bytes | str) -> Any:
    """Return what JSON says; None for what is none."""
    try:
        return json.loads(data.removeprefix(_BOM) if isinstance(data, bytes) else data)
    except (ValueError, RecursionError):
        return None


def _form(value: Any) -> str:
    if fhir.is_resource(value):
        return "fhir"
    return "calls" if isinstance(value, dict) and "list" in value else "ndjson"


def _document(value: Any) -> Iterator[Found]:
    """Read the entries of one document, each by its place in it, from 1."""
    if fhir.is_resource(value) and value["resourceType"] == "Bundle":
        for number, resource in enumerate(fhir.resources_of(value), 1):
            yield from fhir.read_resource(number, resource)
        return
    entries = [value]
    if isinstance(value, list):
        entries = value
    elif isinstance(value, dict) and isinstance(value.get("events"), list):
        entries = value["events"]
    for number, found in enumerate(entries, 1):
        yield from _object(number, found)


def _objects(lines: Numbered) -> Iterator[Found]:
    for number, text in lines:
        if text is not None and not text.strip():
            yield Other(number)
        elif (value := _parsed(text or "")) is None:
            yield Malformed(number)
        else:
            yield from _object(number, value)


def _object(number: int, value: Any) -> Iterator[Found]:
    if fhir.is_resource(value):
        yield from fhir.read_resource(number, value)
    else:
        yield from tables.read_object(number, value)


def _is_plain(start: bytes) -> bool:
    """Whether one of the first lines is an event id."""
    for line in start.splitlines()[:1000]:
        with suppress(ItemError):
            return bool(read_id(line.decode("utf-8", "replace")))
    return False


def _past_heading(lines: Numbered) -> None:
    for _, text in lines:
        if text is None or text.strip():
            return


def _lines(
    file: BinaryIO,
    progress: Progress,
    *,
    carriage_returns: bool = False,
    encoding: str = "utf-8",
) -> Numbered:
    """Yield the lines with their numbers, from 1; None for one that is too long or no text."""
    number, size = 0, 0
    kept = b""
    skipping = False
    while chunk := file.read(_CHUNK):
        size += len(chunk)
        progress(size)
        data = kept + chunk
        held = b""
        if carriage_returns:
            if data.endswith(b"\r"):
                # Its line feed may be in the next chunk: the two are one end.
                data, held = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, kept = data.split(b"\n")
        kept += held
        for raw in whole:
            number += 1
            yield number, None if skipping or len(raw) > LONGEST_LINE else _text(raw, encoding)
            skipping = False
        if len(kept) > LONGEST_LINE:
            kept, skipping = held, True
    if kept or skipping:
        yield number + 1, None if skipping else _text(kept, encoding)


def _text(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.removeprefix(_BOM).decode(encoding).removesuffix("\r")
    except UnicodeDecodeError:
        return None
