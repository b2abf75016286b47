"""Lists of the other party: recognised by content, read line by line, nothing skipped quietly."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest

from sealward.evidence import csv, fhir
from sealward.kit import attributes as names
from sealward.kit.calllist import Begins, Ended, Sent, Skipped, write_line
from sealward.reconcile import reading
from sealward.reconcile.hl7 import Fields
from sealward.reconcile.items import (
    Found,
    Heading,
    Item,
    ListError,
    Malformed,
    Other,
    Passed,
)
from sealward.reconcile.reading import List, open_list
from tests.support.evidence_events import DENIED, LOGIN, PREDICTION, make_events
from tests.support.trails import SESSION, START, event_id

ONE, TWO, THREE = (event_id(START, n) for n in (1, 2, 3))
V4 = "0b9d3f3e-94c4-4f0e-9c1c-0d3c7f3a9b11"


def name(value: bytes) -> str:
    return str(UUID(bytes=value))


def read(data: bytes | str, fields: Fields | None = None) -> tuple[List, list[Found]]:
    raw = data.encode() if isinstance(data, str) else data
    opened = open_list(BytesIO(raw), fields or Fields())
    return opened, list(opened.found)


def ids(found: list[Found]) -> list[bytes]:
    return [one.event_id for one in found if isinstance(one, Item)]


# --- the client's own list ---------------------------------------------------------------------


def test_the_clients_own_list() -> None:
    lines = [
        Begins("ann", 2, START),
        Sent(SESSION, 1, START),
        Ended(SESSION, 1, START, "ok", ONE, "log", 12),
        Skipped(SESSION, 2, 9, START),
        Ended(SESSION, 10, START, "no-answer", code="UNAVAILABLE"),
    ]
    opened, found = read(
        b"".join(map(write_line, lines)) + b'{"session":"x","seq":-1,"at":0}\n{"a\n'
    )
    assert (opened.form, opened.unit) == ("calls", "line")
    assert found == [
        Heading(1, "ann", 2),
        Item(2, b"", SESSION, 1, at=START, sent=True),
        Item(3, ONE, SESSION, 1, "ok", START, "log", 12),
        Passed(4, SESSION, 2, 9),
        Item(5, b"", SESSION, 10, "no-answer", START),
        Malformed(6),
        Malformed(7),
    ]


# --- ids, tables, objects ----------------------------------------------------------------------


def test_one_id_a_line_as_people_write_it() -> None:
    text = (
        f"# from the archive\r\n{name(ONE)}\r\n\r\n  {TWO.hex().upper()}  \r\n"
        f"urn:uuid:{name(THREE)}\r\n{{{V4}}}\r\nMRN 4711 was here\r\n"
    )
    opened, found = read("\ufeff" + text)
    assert opened.form == "ids"
    assert ids(found) == [ONE, TWO, THREE, UUID(V4).bytes]
    assert [x for x in found if not isinstance(x, Item)] == [Other(1), Other(3), Malformed(7)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_table_with_a_heading(delimiter: str) -> None:
    rows = [
        ["Event_ID", "patient", "Session", "caller_seq", "outcome"],
        [name(ONE), "Mr X", SESSION, "1", "ok"],
        [name(TWO), '"a, ""b"""', "", "", "normal"],
        ["", "", SESSION, "3", ""],
        ["", "", "", "", ""],
        ["not an id", "", "", "", ""],
        [name(THREE), "", "", "-1", ""],
        [name(THREE), "", ""],
        [name(THREE), '"never closed', "", "", ""],
        [name(THREE), "", "", "", "denied"],
    ]
    _, found = read("\n".join(delimiter.join(row) for row in rows))
    assert found == [
        Item(2, ONE, SESSION, 1, "ok"),
        Item(3, TWO),
        Item(4, b"", SESSION, 3),
        Other(5),
        Malformed(6),
        Malformed(7),
        Malformed(8),
        Malformed(9),
        Item(10, THREE, outcome="denied"),
    ]


def test_our_own_csv_is_a_table() -> None:
    events = make_events([PREDICTION, DENIED, LOGIN])
    _, found = read("".join(csv.lines(events)))
    assert ids(found) == [event.event_id for event in events]
    first = found[0]
    assert isinstance(first, Item)
    assert (first.session, first.outcome, first.log_index) == ("5f2c", "ok", events[0].index)
    assert first.log == events[0].origin


def test_objects_of_other_programs() -> None:
    lines = [
        {"event_id": name(ONE), "note": "x"},
        {"sealward-event-id": name(TWO), "sealward-seq": "7", "session_id": SESSION},
        name(THREE),
        {"nothing": "of ours"},
        {"event_id": 7},
        ["a"],
        None,
    ]
    _, found = read("\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert found == [
        Item(1, ONE), Item(2, TWO, SESSION, 7), Item(3, THREE), Other(4), Malformed(5),
        Malformed(6), Malformed(7), Other(8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [
        [name(ONE), name(TWO)],
        [{"event_id": name(ONE)}, {"event_id": name(TWO)}],
        {"events": [{"event_id": name(ONE)}, {"event_id": name(TWO), "log_index": 3}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_one_document_of_ids(document: Any, indent: int | None) -> None:
    opened, found = read(json.dumps(document, indent=indent))
    assert ids(found) == [ONE, TWO]
    assert [one.line for one in found] == [1, 2]
    assert opened.unit == "entry"


# --- FHIR --------------------------------------------------------------------------------------


def observation(value: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": V4,
        "subject": {"reference": "Patient/4711"},
        "identifier": [{"system": "urn:other", "value": V4}],
        "derivedFrom": [{"identifier": {"system": "urn:sealward:event", "value": value}}],
        **more,
    }


def test_our_own_audit_events() -> None:
    events = make_events([PREDICTION, DENIED, LOGIN])
    opened, found = read("".join(map(fhir.ndjson_line, events)))
    assert (opened.form, opened.unit) == ("fhir", "line")
    assert ids(found) == [event.event_id for event in events]
    answered, denied, login = found
    assert isinstance(answered, Item)
    assert isinstance(denied, Item)
    assert (answered.outcome, denied.outcome) == ("ok", "")
    assert (answered.log, answered.log_index) == (events[0].origin, events[0].index)
    assert login == Item(3, events[2].event_id, "", 0, "ok", 0, events[2].origin, events[2].index)


def test_session_and_number_of_an_audit_event() -> None:
    values = {**PREDICTION, names.SESSION_ID: SESSION, names.CALLER_SEQ: 12}
    (event,) = make_events([values])
    _, (item,) = read(fhir.ndjson_line(event))
    assert isinstance(item, Item)
    assert (item.session, item.seq) == (SESSION, 12)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_bundle_of_other_resources(indent: int | None) -> None:
    extension = {
        "resourceType": "DiagnosticReport",
        "extension": [{"url": "urn:sealward:event", "valueString": name(TWO)}],
    }
    nested = {
        "resourceType": "Bundle",
        "entry": [{"resource": observation(name(THREE))}, {"resource": observation("no id")}],
    }
    entries = [
        {"resource": observation(name(ONE))},
        {"resource": extension},
        {"resource": {"resourceType": "Patient", "id": "4711"}},
        {"response": {"status": "201"}},
        {"resource": nested},
        {"resource": "not a resource"},
        "not an entry",
    ]
    opened, found = read(json.dumps({"resourceType": "Bundle", "entry": entries}, indent=indent))
    assert (opened.form, opened.unit) == ("fhir", "entry")
    assert found == [
        Item(1, ONE), Item(2, TWO), Other(3), Other(4), Item(5, THREE), Malformed(5),
        Malformed(6), Malformed(7),
    ]  # fmt: skip


def test_a_resource_with_several_events() -> None:
    report = observation(
        name(ONE), extension=[{"url": "urn:sealward:event", "valueUuid": name(TWO)}]
    )
    _, found = read(json.dumps(report) + "\n" + json.dumps(report))
    assert sorted(ids(found)) == sorted([ONE, TWO] * 2)
    assert read(json.dumps({"resourceType": "Bundle", "entry": {}}))[1] == [Malformed(1)]


# --- HL7 v2 ------------------------------------------------------------------------------------

MESSAGE = [
    r"MSH|^~\&|LAB|H|RIS|H|20260501||ORU^R01|1|P|2.5.1",
    "PID|1||4711^^^H||Miller^Ann",
    "OBR|1||X|malignancy",
    f"OBX|1|NM|p||0.93||||||F|||||{V4}||{name(ONE)}^SEALWARD^^L",
    f"NTE|1||see {name(TWO)} and {V4}",
]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_a_message_names_its_events_in_the_configured_fields(end: str) -> None:
    other = [MESSAGE[0], "OBX|1|NM|p||0.1||||||F"]
    zed = [MESSAGE[0], f"ZSW|{THREE.hex()}|x"]
    batch = [
        r"FHS|^~\&|A",
        r"BHS|^~\&|A",
        *MESSAGE,
        *other,
        *zed,
        "not a segment",
        "BTS|3",
        "FTS|1",
    ]
    opened, found = read(end.join(batch) + end)
    assert (opened.form, opened.unit) == ("hl7", "segment")
    assert found == [
        Item(6, ONE), Item(7, TWO), Other(8), Item(11, THREE), Malformed(12),
    ]  # fmt: skip


def test_other_separators_framing_and_repetitions() -> None:
    framed = (
        "\x0bMSH#*!\\@#LAB#H\r"
        f"OBX#1#NM#p##1###########{name(ONE)}!{name(ONE)}@x\r\x1c\r\n"
        f"\x0bMSH|^~\\&|LAB|H\rNTE|1||{name(TWO)}~{name(THREE)}\r\x1c\r\n"
    )
    # In field 16 the first one is not looked for.
    assert ids(read(framed)[1]) == [TWO, THREE]
    framed = framed.replace("###########", "#" * 13)
    assert ids(read(framed)[1]) == [ONE, TWO, THREE]


def test_the_fields_are_configurable() -> None:
    text = "\r".join([*MESSAGE, f"PV1|1|{name(THREE)}"])
    assert ids(read(text, Fields(["PV1-2"]))[1]) == [THREE]
    assert ids(read(text, Fields(["P*", "NTE"]))[1]) == [TWO, THREE]
    for wrong in ("OBX18", "", "*", "OBX-0", "O-1"):
        with pytest.raises(ListError, match="OBX-18"):
            Fields([wrong])


def test_segments_before_a_message_are_malformed() -> None:
    _, found = read("MSH|^~\\&|A\rBTS|0\rOBX|1\r" + "\r".join(MESSAGE))
    assert found[:2] == [Other(1), Malformed(3)]
    assert ids(found) == [ONE, TWO]


# --- bounds and doubts -------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf\n"])
def test_an_empty_file_is_no_list(data: bytes) -> None:
    with pytest.raises(ListError, match="empty"):
        read(data)


@pytest.mark.parametrize(
    "data", [b"hello, world\n", b"\x00\x01\x02" * 100, b"MSHX\n", b"{broken\n}"]
)
def test_what_is_no_list_is_said_without_its_content(data: bytes) -> None:
    with pytest.raises(ListError) as caught:
        read(data)
    assert "hello" not in str(caught.value)
    assert "broken" not in str(caught.value)


def test_lines_of_json_whose_first_one_is_spoilt() -> None:
    _, found = read(f'{{"event_id": "{name(ONE)}"\n{{"event_id": "{name(TWO)}"}}\nx\n')
    assert found == [Malformed(1), Item(2, TWO), Malformed(3)]


def test_a_line_that_is_no_text_or_too_long_spoils_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", 300)
    monkeypatch.setattr(reading, "_CHUNK", 64)
    good = [f'{{"event_id":"{name(one)}"}}'.encode() for one in (ONE, TWO, THREE)]
    lines = [good[0], b'{"event_id":"' + b"x" * 1000 + b'"}', good[1], b"\xff\xfe", good[2]]
    for end in (b"\n", b"\r\n"):
        _, found = read(end.join(lines))
        assert found == [Item(1, ONE), Malformed(2), Item(3, TWO), Malformed(4), Item(5, THREE)]
    hl7 = [line.encode() for line in MESSAGE]
    hl7.insert(3, b"OBX|2|ED|pdf||" + base64.b64encode(bytes(2000)))
    for end in (b"\r", b"\r\n"):
        _, found = read(end.join(hl7))
        assert found == [Malformed(4), Item(5, ONE), Item(6, TWO)]


def test_a_document_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST_DOCUMENT", 1 << 20)
    monkeypatch.setattr(reading, "LONGEST_LINE", 1 << 19)
    document = json.dumps([name(ONE)] * 40_000, indent=1)
    with pytest.raises(ListError, match="1 MiB"):
        read(document)
    # Lines may be as many as they like.
    _, found = read("\n".join([f'{{"event_id":"{name(ONE)}"}}'] * 40_000))
    assert len(found) == 40_000


def test_reading_says_how_far_it_is() -> None:
    seen: list[int] = []
    data = b"\n".join([name(ONE).encode()] * 100_000)
    opened = open_list(BytesIO(data), Fields(), seen.append)
    assert len(list(opened.found)) == 100_000
    assert seen == sorted(seen)
    assert seen[-1] == len(data)
