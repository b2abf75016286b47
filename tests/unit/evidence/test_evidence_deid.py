"""De-identified events: none of the 18 identifiers, codes that are drawn, a report of what went."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealward.evidence import deid
from sealward.evidence.deid import CLASSES, COLUMNS, Deidentifier, OneExport
from sealward.evidence.event import Event
from sealward.kit import attributes as names
from tests.support.evidence_events import LOGIN, PREDICTION, REFERENCE, make_events

# One value of each class, as a careless caller or a careless field would carry it.
IDENTIFIERS: Mapping[str, str] = {
    "A": "Jane Q. Doe",
    "B": "14 Elm Street, Springfield 62701",
    "C": "2026-03-17T08:15:00Z",
    "D": "+1 217 555 0143",
    "E": "217-555-0144",
    "F": "jane.doe@example.org",
    "G": "078-05-1120",
    "H": "MRN-00471199",
    "I": "1EG4-TE5-MK73",
    "J": "acct-998877665",
    "K": "D400-7836-0001",
    "L": "1hgcm82633a004352",
    "M": "sn-20260317-88",
    "N": "https://portal.example.org/p/471199",
    "O": "192.0.2.44",
    "P": "fingerprint:9a8b7c6d5e4f",
    "Q": "data:image/jpeg;base64,/9j/4AAQ",
    "R": "urn:uuid:2d5b9f7e-8d0c-4a52-9c5e-0b5a8b7c6d5e",
}
TEXTS = sorted(
    (names.ALLOWED | names.AUDIT_ONLY)
    - {names.EVENT_TYPE, names.EVENT_ID, names.PRODUCER_ID, names.BREAK_GLASS}
)


def made(*events: Event) -> tuple[str, str, dict[str, Any]]:
    """The events as CSV and as FHIR, and the report of the first."""
    first, second = (Deidentifier(OneExport(lambda: secrets.token_hex(8))) for _ in range(2))
    as_csv = "".join(deid.csv_lines(first.records(events)))
    as_fhir = "".join(map(deid.fhir_line, second.records(events)))
    return as_csv, as_fhir, first.report.as_json()


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_classes_are_those_of_the_rule() -> None:
    assert list(CLASSES) == list(IDENTIFIERS) == [chr(ord("A") + n) for n in range(18)]


@pytest.mark.parametrize("letter", IDENTIFIERS)
def test_an_identifier_in_any_field_is_in_no_output(letter: str) -> None:
    value = IDENTIFIERS[letter]
    records = [{**PREDICTION, name: value} for name in TEXTS]
    records.append({**PREDICTION, **dict.fromkeys(TEXTS, value)})
    records.append({**PREDICTION, names.ACTOR_ROLES: ("clinician", value)})
    as_csv, as_fhir, report = made(*make_events(records))
    assert report["events"] == len(records)
    for text in (as_csv, as_fhir):
        for part in {value, value.lower(), *re.findall(r"[A-Za-z0-9@.+-]{6,}", value)}:
            assert part not in text
    assert {item["field"] for item in report["refused"]} >= {names.MODEL_NAME, names.POLICY_ID}
    assert value not in json.dumps(report)


def test_what_is_left_says_what_happened() -> None:
    (event,) = make_events([{**PREDICTION, names.PATIENT_REFERENCE: REFERENCE}])
    as_csv, as_fhir, report = made(event)
    (row,) = rows(as_csv)
    year = dt.datetime.fromtimestamp(event.span.start / 1e9, dt.UTC).year
    assert row["year"] == str(year)
    assert (row["type"], row["outcome"], row["roles"]) == ("inference.predict", "ok", "clinician")
    assert (row["model"], row["purpose"], row["rows"]) == ("breast-cancer", "TREAT", "1")
    assert re.fullmatch("[0-9a-f]{16}", row["patient"])
    for kept_back in (
        REFERENCE, str(PREDICTION[names.PATIENT]), "dr-smith", event.id, event.id.replace("-", ""),
        event.origin, event.span.trace_id, str(PREDICTION[names.SESSION_ID]),
        str(PREDICTION[names.ACTOR_CERT]),
        dt.datetime.fromtimestamp(event.span.start / 1e9, dt.UTC).strftime("%Y-%m"),
    ):  # fmt: skip
        assert kept_back not in as_csv
        assert kept_back not in as_fhir
    removed = {item["field"]: item["class"] for item in report["removed"]}
    assert removed[names.PATIENT_REFERENCE] == "H"
    assert removed[names.ACTOR_CERT] == "K"
    assert removed["time"] == "C"
    assert report["codes"] == {"actor": 1, "patient": 1}


def test_fhir_has_a_year_and_a_masked_instant() -> None:
    _, as_fhir, _ = made(*make_events([PREDICTION, LOGIN]))
    first, second = (json.loads(line) for line in as_fhir.splitlines())
    assert "id" not in first
    assert "recorded" not in first
    assert first["_recorded"]["extension"][0]["valueCode"] == "masked"
    assert re.fullmatch("20[0-9]{2}", first["period"]["start"])
    assert first["meta"]["security"][0]["code"] == "PSEUDED"
    assert first["purposeOfEvent"][0]["coding"][0]["code"] == "TREAT"
    assert [e["what"].get("type") for e in first["entity"]] == ["Patient", None]
    assert [e["what"].get("type") for e in second["entity"]] == [None]


def test_codes_are_drawn_and_another_export_has_others() -> None:
    other = {**PREDICTION, names.PATIENT: "p1:00000000"}
    events = make_events([PREDICTION, other, PREDICTION])
    one, two = (rows(made(*events)[0]) for _ in range(2))
    assert one[0]["patient"] == one[2]["patient"] != one[1]["patient"]
    assert {row["patient"] for row in one}.isdisjoint(row["patient"] for row in two)
    assert {row["actor"] for row in one}.isdisjoint(row["actor"] for row in two)


@pytest.mark.parametrize(
    "changes",
    [
        {names.EVENT_TYPE: "otel.span"},
        {names.PRODUCER_ID: "spiffe://sealward.local/workload/lab"},
        {names.PRODUCER_ID: ""},
    ],
)
def test_spans_of_others_are_left_out(changes: dict[str, str]) -> None:
    as_csv, as_fhir, report = made(*make_events([{**PREDICTION, **changes}, PREDICTION]))
    assert (report["events"], report["left_out"]) == (1, 1)
    assert len(rows(as_csv)) == len(as_fhir.splitlines()) == 1


@given(st.text("abcdefgh -.@:/XYZ0123456789é=+", min_size=9, max_size=60), st.data())
def test_free_text_never_passes(text: str, data: st.DataObject) -> None:
    # A label that a service of ours writes is no free text; anything else is refused whole.
    name = data.draw(st.sampled_from([n for n in TEXTS if n != names.ACTOR_ROLES]))
    as_csv, as_fhir, _ = made(*make_events([{**PREDICTION, name: text}]))
    label = re.fullmatch(r"(?!.*[0-9]{5})[a-z][a-z0-9]*([._-][a-z0-9]+)*", text)
    version = re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", text)
    if not label and not version:
        assert text not in as_csv
        assert text not in as_fhir


def test_a_field_that_nobody_knows_is_removed() -> None:
    deidentifier = Deidentifier(OneExport(lambda: "x"))
    (event,) = make_events([{**PREDICTION, "sealward.new.age": 91}])
    record = deidentifier.record(event)
    assert record is not None
    assert set(record) <= set(COLUMNS)
    assert deidentifier.report.removed["sealward.new.age", "R"] == 1
