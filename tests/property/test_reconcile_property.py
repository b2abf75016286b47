"""Lists of any content are read to their end, and numbers with holes are told exactly."""

from __future__ import annotations

import json
from contextlib import suppress
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sealward.kit.calllist import (
    NO_ANSWER,
    RECEIPTED,
    UNTRUSTED,
    Begins,
    Ended,
    Line,
    LineError,
    Sent,
    Skipped,
    read_line,
    write_line,
)
from sealward.reconcile import reading
from sealward.reconcile.hl7 import Fields
from sealward.reconcile.items import Item, ListError, Malformed
from sealward.reconcile.reading import open_list
from tests.support.trails import SESSION, Log, event_id, found, reconcile

# Whole milliseconds: what a list tells.
TIMES = st.integers(1, 4_000_000_000_000).map(lambda ms: ms * 1_000_000)
NUMBERS = st.integers(0, (1 << 63) - 1)
SESSIONS = st.from_regex(r"~?[0-9a-f]{1,32}", fullmatch=True)
WORDS = st.from_regex(r"[A-Z_]{0,20}", fullmatch=True)
UUIDS = st.binary(min_size=16, max_size=16)
LINES = st.one_of(
    st.builds(Begins, st.text(max_size=20), NUMBERS, TIMES),
    st.builds(Sent, SESSIONS, NUMBERS, TIMES),
    st.builds(
        Ended, SESSIONS, NUMBERS, TIMES, st.sampled_from(RECEIPTED), UUIDS, st.text(max_size=20),
        st.none() | NUMBERS, WORDS, WORDS,
    ),
    st.builds(
        Ended, SESSIONS, NUMBERS, TIMES, st.sampled_from([NO_ANSWER, UNTRUSTED]), st.just(b""),
        st.just(""), st.none(), WORDS, WORDS,
    ),
    st.builds(
        lambda s, a, b, at: Skipped(s, min(a, b), max(a, b), at),
        SESSIONS, NUMBERS.filter(bool), NUMBERS.filter(bool), TIMES,
    ),
)  # fmt: skip


@given(LINES)
def test_a_line_is_read_as_it_was_written(line: Line) -> None:
    data = write_line(line)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert read_line(data) == line


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(
            ["session", "seq", "at", "outcome", "event_id", "list", "skipped", "user", "part",
             "resourceType", "entry", "resource", "system", "value", "detail", "type", "events"]
        ) | st.text(max_size=5),
        inner, max_size=6,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
@example({"session": "a", "seq": 1, "at": "9999-12-31T23:59:59+00:00", "outcome": []})
@example({"list": "sealward-calls/1", "user": "a", "part": 1, "at": "0001-01-01T00:00:00+23:59"})
@example({"resourceType": "Bundle", "entry": [{"resource": {"resourceType": "Bundle"}}]})
@example(
    {"resourceType": "AuditEvent", "identifier": {"system": "urn:sealward:event", "value": {}}}
)
def test_an_object_of_any_form_is_an_item_or_named(value: object) -> None:
    text = json.dumps(value)
    with suppress(LineError):
        read_line(text.encode())
    for data in (text, f'{{"event_id":"x"}}\n{text}\n{{"event_id":"y"}}'):
        try:
            opened = open_list(BytesIO(data.encode()), Fields())
        except ListError:
            continue
        for one in opened.found:
            assert one.line >= 1


@settings(max_examples=300)
@given(
    st.sampled_from([b"", b"MSH|^~\\&|", b"{", b"[", b"event_id,seq\n", b"00" * 16 + b"\n"]),
    st.binary(max_size=400),
    st.integers(1, 80),
)
def test_a_file_of_any_bytes_is_read_to_its_end(start: bytes, rest: bytes, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_CHUNK", chunk)
        patch.setattr(reading, "LONGEST_LINE", 100)
        try:
            opened = open_list(BytesIO(start + rest), Fields())
            lines = [one.line for one in opened.found]
        except ListError:
            return
        assert all(line >= 1 for line in lines)
        if opened.unit == "line":
            assert lines == sorted(lines)


SPOILT = st.sampled_from(["", "#", "x", '{"', "\x00", "null", "0" * 31, "{}"])


@given(st.lists(st.one_of(st.integers(1, 1 << 60), SPOILT), min_size=1), st.sampled_from("\n\r"))
def test_no_line_is_skipped_quietly(parts: list[int | str], end: str) -> None:
    """Every line of a plain list is an id, a remark, or named; the ends of lines do not matter."""
    end = {"\n": "\n", "\r": "\r\n"}[end]
    texts = [str(UUID(bytes=event_id(1, p))) if isinstance(p, int) else p for p in parts]
    data = end.join([str(UUID(bytes=event_id(1, 1))), *texts])
    found_ = list(open_list(BytesIO(data.encode()), Fields()).found)
    assert [one.line for one in found_] == list(range(1, len(found_) + 1))
    assert len(found_) == len(texts) + 1 - (not texts[-1])
    good = sum(isinstance(p, int) for p in parts)
    assert sum(isinstance(one, Item) for one in found_) == good + 1
    bad = sum(p not in ("", "#") for p in parts if isinstance(p, str))
    assert sum(isinstance(one, Malformed) for one in found_) == bad


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 60), min_size=1), st.randoms(use_true_random=False))
def test_holes_are_exactly_what_is_missing(kept: set[int], random: object) -> None:
    log = Log()
    order = sorted(kept)
    random.shuffle(order)
    for number in order:
        log.add(producer_seq=number, session=SESSION, caller_seq=number)
    report = reconcile(log, limit=0)
    expected = set(range(1, max(kept))) - kept
    for kind in ("number", "call"):
        told = [
            n
            for hole in report.details.get(kind, [])
            for n in range(hole["first"], hole["last"] + 1)
        ]
        assert sorted(told) == sorted(expected)
    assert found(report) == ({"number": len(expected), "call": len(expected)} if expected else {})


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 40), min_size=1), st.sets(st.integers(1, 40), min_size=1))
def test_two_lists_differ_exactly_by_what_one_lacks(ours: set[int], theirs: set[int]) -> None:
    log = Log()
    rows = {n: log.add(session=SESSION, caller_seq=n) for n in sorted(ours)}
    items = [
        Item(n, rows[n].event_id if n in rows else event_id(log.time), SESSION, n, "ok", log.time)
        for n in sorted(theirs)
    ]
    report = reconcile(log, items, limit=0)
    kinds: dict[str, list[Any]] = {
        kind: [i.get("seq") for i in items_] for kind, items_ in report.details.items()
    }
    assert sorted(kinds.get("only-theirs", [])) == sorted(theirs - ours)
    told = kinds.get("only-ours", []) + kinds.get("after-list", [])
    assert sorted(told) == sorted(ours - theirs)
