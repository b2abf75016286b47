"""Lists of event ids as tables: CSV with a heading, objects of JSON, one id a line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sealward.kit import calllist
from sealward.reconcile.items import (
    ALIASES,
    Found,
    Heading,
    Item,
    ItemError,
    Malformed,
    Other,
    Passed,
    item_of,
    read_id,
)

DELIMITERS = (",", ";", "\t", "|")
Lines = Iterable[tuple[int, str | None]]
"""Numbered lines, from 1; None stands for one that is no text, or too long."""


def columns_of(heading: str) -> tuple[str, list[str]] | None:
    """Return delimiter and column names of a heading; None for a line that is none.

    A heading names event ids, or sessions and the caller's numbers; other columns may be there.
    """
    for delimiter in DELIMITERS:
        try:
            (cells,) = csv.reader([heading], delimiter=delimiter)
        except (csv.Error, ValueError):
            continue
        names = [ALIASES.get(cell.strip().lower(), "") for cell in cells]
        if "event_id" in names or {"session", "seq"} <= set(names):
            return delimiter, names
    return None


def read_csv(lines: Lines, delimiter: str, names: Sequence[str]) -> Iterator[Found]:
    """Read the rows below a heading. Each line is a row by itself: none can spoil the next."""
    for number, text in lines:
        if text is not None and not text.strip():
            yield Other(number)
            continue
        try:
            (cells,) = csv.reader([text or ""], delimiter=delimiter, strict=True)
        except (csv.Error, ValueError):
            cells = []
        if len(cells) != len(names):
            yield Malformed(number)
            continue
        values = {name: cell.strip() for name, cell in zip(names, cells, strict=True) if name}
        yield _checked(number, values)


def read_plain(lines: Lines) -> Iterator[Found]:
    """Read one event id a line. Empty lines, and those that begin with `#`, are no calls."""
    for number, text in lines:
        if text is not None and (not text.strip() or text.lstrip().startswith("#")):
            yield Other(number)
            continue
        try:
            yield Item(number, read_id(text))
        except ItemError:
            yield Malformed(number)


def read_object(number: int, values: Any) -> Iterator[Found]:
    """Read one JSON value: a line of a list of calls, an object with an event id, or an id."""
    if isinstance(values, str):
        try:
            yield Item(number, read_id(values))
        except ItemError:
            yield Malformed(number)
    elif not isinstance(values, Mapping):
        yield Malformed(number)
    elif calllist.is_call(values) and ("at" in values or "list" in values):
        yield _call(number, values)
    elif isinstance(values.get("events"), list):
        for event in values["events"]:
            yield from read_object(number, event)
    else:
        named: dict[str, Any] = {}
        for key, value in values.items():
            name = ALIASES.get(str(key).lower())
            if name is not None:
                named.setdefault(name, value)
        yield _checked(number, named)


def _checked(number: int, values: Mapping[str, Any]) -> Found:
    try:
        return item_of(number, values)
    except ItemError:
        return Malformed(number)


def _call(number: int, values: Mapping[str, Any]) -> Found:
    try:
        line = calllist.read_object(values)
    except calllist.LineError:
        return Malformed(number)
    match line:
        case calllist.Begins():
            return Heading(number, line.user, line.part)
        case calllist.Skipped():
            return Passed(number, line.session, line.first, line.last)
        case calllist.Sent():
            return Item(number, b"", line.session, line.seq, at=line.at, sent=True)
        case calllist.Ended():
            return Item(
                number, line.event_id, line.session, line.seq, line.outcome, line.at, line.log,
                line.log_index,
            )  # fmt: skip
