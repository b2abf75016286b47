"""Events, FHIR and CSV: valid for the judges of others, exactly one patient, no formula."""

from __future__ import annotations

import base64
import csv as stdlib_csv
import dataclasses
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fhir.resources.R4B.auditevent import AuditEvent

from sealward.api.audit.v1.audit_pb2 import Receipt
from sealward.evidence import csv, fhir
from sealward.evidence.event import EvidenceError, make_event, open_head, read_span
from sealward.evidence.purposes import NOT_ACCOUNTED, WORDS
from sealward.kit import attributes as names
from sealward.kit.spans import SpanHead
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import open_receipt
from services.audit.reports import disclosures
from services.gateway.purposes import PURPOSES
from tests.support.evidence_events import (
    DENIED,
    LOGIN,
    PREDICTION,
    REFERENCE,
    START,
    make_events,
    span_of,
)  # fmt: skip

BALP = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
IDENTIFIED = {**PREDICTION, names.PATIENT_REFERENCE: REFERENCE}
RESEARCH = {**PREDICTION, names.PURPOSE: "HRESCH", names.ORGANIZATION: "registry.example"}
NO_PATIENT = {name: value for name, value in PREDICTION.items() if name != names.PATIENT}
EXPORTED_SPAN = {names.PRODUCER_ID: "spiffe://sealward.local/workload/pacs"}
ALL = [
    PREDICTION, IDENTIFIED, RESEARCH, NO_PATIENT, DENIED, LOGIN, START, EXPORTED_SPAN,
    {**PREDICTION, names.OUTCOME: "failed", names.CODE: "INVALID_ARGUMENT"},
    {**PREDICTION, names.OUTCOME: "failed", names.CODE: "INTERNAL"},
    {**LOGIN, names.EVENT_TYPE: "keys.branch-create", names.ACTOR_ID: "", names.TARGET: "x"},
    {**LOGIN, names.EVENT_TYPE: "audit.export", names.ACTOR_KIND: "admin", names.COUNT: 3},
    {**PREDICTION, names.BREAK_GLASS: True, names.BREAK_GLASS_REASON: "cardiac-arrest"},
]  # fmt: skip
EVENTS = make_events(ALL)


def resource(record: Any) -> dict[str, Any]:
    return fhir.audit_event(make_events([record])[0])


# --- events --------------------------------------------------------------------------------------


def test_an_event_whose_entry_is_not_in_the_log_is_refused() -> None:
    event = EVENTS[0]
    receipt = Receipt(log_index=event.index, leaf=event.leaf, path=b"".join(event.path))
    span = span_of(PREDICTION)
    make_event(event.event_id, span, receipt, event.head)
    for change in (
        {"leaf": event.leaf[:-1] + bytes([event.leaf[-1] ^ 1])},
        {"log_index": event.index + 1},
        {"path": bytes(len(receipt.path))},
        {"path": b"x"},
    ):
        changed = Receipt()
        changed.CopyFrom(receipt)
        changed.MergeFrom(Receipt(**change))  # type: ignore[arg-type]
        with pytest.raises(EvidenceError):
            make_event(event.event_id, span, changed, event.head)
    with pytest.raises(EvidenceError, match="another event"):
        make_event(bytes(16), span, receipt, event.head)
    with pytest.raises(EvidenceError, match="another event"):
        make_event(event.event_id, span_of(PREDICTION, 9), receipt, event.head)
    with pytest.raises(EvidenceError):
        open_head(b"no note", event.head.vkeys)
    with pytest.raises(EvidenceError):
        open_head(event.checkpoint, "")


def test_the_entry_names_its_event_where_the_span_does_not() -> None:
    event = EVENTS[0]
    receipt = Receipt(log_index=event.index, leaf=event.leaf, path=b"".join(event.path))
    span = SpanHead("x").build(1, 2, [])
    assert make_event(event.event_id, span, receipt, event.head).id == event.id
    with pytest.raises(EvidenceError, match="another event"):
        make_event(bytes(16), span, receipt, event.head)


def test_spans_are_read_as_opentelemetry_reads_them() -> None:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    data = span_of({**PREDICTION, "x.float": 0.5, "x.bytes": b"\x01\xff", names.BREAK_GLASS: True})
    theirs, ours = Span.FromString(data), read_span(data)
    assert ours.trace_id == theirs.trace_id.hex()
    assert ours.span_id == theirs.span_id.hex()
    assert (ours.start, ours.end) == (theirs.start_time_unix_nano, theirs.end_time_unix_nano)
    assert set(ours.attributes) == {pair.key for pair in theirs.attributes}
    assert ours.attributes[names.ACTOR_ROLES] == ("clinician",)
    assert ours.attributes["x.float"] == 0.5
    assert ours.attributes["x.bytes"] == "01ff"
    assert ours.attributes[names.BREAK_GLASS] is True
    with pytest.raises(EvidenceError):
        read_span(b"\xff")


def test_purposes_are_those_of_the_gateway() -> None:
    assert set(WORDS) == PURPOSES
    assert NOT_ACCOUNTED < PURPOSES
    assert not {"HRESCH", "HMARKT", "HLEGAL", "PUBHLTH"} & NOT_ACCOUNTED


def test_a_disclosure_is_what_the_accounting_lists() -> None:
    assert NOT_ACCOUNTED == disclosures.NOT_ACCOUNTED
    others = [
        {**PREDICTION, names.EVENT_TYPE: of, names.PURPOSE: ""}
        for of in ("audit.export", "session.break-glass")
    ]
    for record in (*ALL, *others):
        (event,) = make_events([record])
        row = SimpleNamespace(
            outcome=event.outcome, type=event.type, purpose=event.text(names.PURPOSE)
        )
        listed = disclosures.is_disclosure(SimpleNamespace(row=row))  # type: ignore[arg-type]
        assert fhir.is_disclosure(event) == (listed and bool(event.patient)), record


# --- FHIR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(len(EVENTS)))
def test_every_line_is_a_valid_r4b_audit_event(at: int) -> None:
    line = fhir.ndjson_line(EVENTS[at])
    assert line.endswith("\n")
    assert line.count("\n") == 1
    parsed = AuditEvent.model_validate_json(line)
    assert [agent.requestor for agent in parsed.agent].count(True) == 1
    # The parser drops nothing: what it writes is what it read.
    # Of instants alone: a receipt's Base64 may have 000Z in it, but no full stop.
    written = re.sub(r"(\.[0-9]{3})000Z", r"\1Z", parsed.model_dump_json())
    assert json.loads(written) == json.loads(line)


def test_the_judge_can_say_no() -> None:
    made = resource(PREDICTION)
    for field in ("type", "agent", "source", "recorded"):
        with pytest.raises(ValueError, match=field):
            AuditEvent.model_validate({k: v for k, v in made.items() if k != field})


def codes(concepts: list[dict[str, Any]]) -> list[str]:
    return [c["code"] for c in concepts]


def entities(made: dict[str, Any], code: str) -> list[dict[str, Any]]:
    return [e for e in made["entity"] if e["type"]["code"] == code]


def agents(made: dict[str, Any], code: str) -> list[dict[str, Any]]:
    return [a for a in made["agent"] if a["type"]["coding"][0]["code"] == code]


@pytest.mark.parametrize(
    ("record", "profile"),
    [(PREDICTION, "PatientRead"), (IDENTIFIED, "PatientRead"), (NO_PATIENT, "Read")],
)
def test_a_prediction_is_what_the_read_profiles_ask_for(record: Any, profile: str) -> None:
    made = resource(record)
    assert made["meta"]["profile"] == [BALP + profile]
    assert made["type"]["code"] == "rest"
    assert codes(made["subtype"]) == ["read", "inference.predict"]
    assert (made["action"], made["outcome"]) == ("R", "0")
    (user,), (client,), (server,) = (
        agents(made, "IRCP"),
        agents(made, "110152"),
        agents(made, "110153"),
    )
    assert user["requestor"]
    assert user["who"]["identifier"]["value"] == "dr-smith"
    assert "network" not in user
    assert user["purposeOfUse"][0]["coding"][0]["code"] == "TREAT"
    assert client["network"] == {"address": "spiffe://sealward.local/user/dr-smith", "type": "5"}
    assert server["network"]["address"] == "spiffe://sealward.local/service/gateway"
    assert made["purposeOfEvent"][0]["coding"][0]["display"] == "treatment"
    (data,) = entities(made, "2")
    assert data["role"]["code"] in {"3", "4", "20"}
    assert len(entities(made, "1")) == (profile == "PatientRead")
    assert len(entities(made, "Traceparent")) == 1


def test_the_patient_is_a_pseudonym_unless_the_span_names_them() -> None:
    (patient,) = entities(resource(PREDICTION), "1")
    assert patient["what"]["identifier"] == {
        "system": "urn:sealward:patient-pseudonym", "value": "p1:8c1f00d2",
    }  # fmt: skip
    assert patient["role"]["code"] == "1"
    (patient,) = entities(resource(IDENTIFIED), "1")
    assert patient["what"]["identifier"] == {"system": "urn:sealward:patient", "value": REFERENCE}
    assert "p1:8c1f00d2" not in json.dumps(resource(IDENTIFIED))


def test_a_disclosure_is_what_its_profile_asks_for() -> None:
    made = resource(RESEARCH)
    assert made["meta"]["profile"] == [BALP + "PrivacyDisclosure.Source"]
    assert made["type"]["code"] == "110106"
    assert "disclose" in codes(made["subtype"])
    (source,), (recipient,) = agents(made, "110153"), agents(made, "110152")
    assert source["who"] == made["source"]["observer"]
    assert source["network"]
    assert recipient["network"]
    assert len(entities(made, "1")) == 1
    assert len(made["entity"]) >= 2
    (organization,) = agents(made, "PROV")
    assert organization["who"]["identifier"]["value"] == "registry.example"


def test_a_refusal_is_a_security_alert_by_role() -> None:
    made = resource(DENIED)
    assert "meta" not in made
    assert made["type"]["code"] == "110113"
    assert codes(made["subtype"]) == ["AuthZ-Role", "inference.predict"]
    assert made["outcome"] == "4"
    assert made["outcomeDesc"] == "PERMISSION_DENIED POLICY_DENIED"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [("INVALID_ARGUMENT", "4"), ("INTERNAL", "8"), ("UNAVAILABLE", "8"), ("DATA_LOSS", "12")],
)
def test_failures_have_the_outcome_that_fhir_gives_them(code: str, outcome: str) -> None:
    made = resource({**PREDICTION, names.OUTCOME: "failed", names.CODE: code})
    assert made["outcome"] == outcome


def test_each_line_can_be_checked_against_the_log() -> None:
    event = EVENTS[0]
    (data,) = entities(fhir.audit_event(event), "2")
    details = {d["type"]: d.get("valueString", d.get("valueBase64Binary")) for d in data["detail"]}
    receipt = open_receipt(base64.b64decode(details["receipt"]), parse_vkeys(event.head.vkeys))
    assert receipt.index == int(details["log-index"]) == event.index
    assert receipt.event_id == event.event_id
    assert details["event-id"] == event.id
    assert details["log"] == event.origin


# --- CSV -----------------------------------------------------------------------------------------


def test_csv_has_its_columns_and_the_values() -> None:
    rows = list(stdlib_csv.DictReader(io.StringIO("".join(csv.lines(EVENTS)), newline="")))
    assert len(rows) == len(EVENTS)
    assert tuple(rows[0]) == csv.COLUMNS
    assert rows[0]["actor"] == "dr-smith"
    assert rows[0]["patient"] == "p1:8c1f00d2"
    assert rows[0]["started"] == "2026-09-21T14:13:20.123Z"
    assert rows[1]["patient"] == REFERENCE
    assert [int(row["log_index"]) for row in rows] == [event.index for event in EVENTS]


def test_the_documentation_lists_the_columns() -> None:
    page = (Path(__file__).parents[3] / "docs" / "evidence.md").read_text()
    table = page[page.index("| columns |") : page.index("## A COSE receipt")]
    listed = [name for line in table.splitlines() for name in _names(line.split("|")[1:2])]
    assert tuple(listed) == csv.COLUMNS


def _names(cells: list[str]) -> list[str]:
    return re.findall(r"`(\w+)`", "".join(cells))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")']
)
def test_no_cell_is_a_formula(text: str) -> None:
    event = EVENTS[0]
    span = dataclasses.replace(
        event.span, attributes={**event.span.attributes, names.ACTOR_ID: text, names.TARGET: text}
    )
    line = csv.row(dataclasses.replace(event, span=span))
    (cells,) = stdlib_csv.reader(io.StringIO(line, newline=""))
    assert cells[csv.COLUMNS.index("actor")] == f"'{text}"
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
