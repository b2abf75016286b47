"""Evidence from a running suite: exports, proofs, explanations, as the command line gives them."""

from __future__ import annotations

import base64
import csv
import io
import json
import stat
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from fhir.resources.R4B.auditevent import AuditEvent

from sealward.api.audit.v1.export_pb2 import ExportEventsRequest
from sealward.api.audit.v1.export_pb2_grpc import ExportServiceStub
from sealward.cli.connect import open_channel, trust_domain, user_material
from sealward.tlog.cose import verify_receipt
from sealward.tlog.leaf import parse_leaf
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import open_receipt
from tests.support.suites import RunningSuite

PATIENT = "Patient/canary-evidence-3301"


@pytest.fixture(scope="module")
def asked(suite: RunningSuite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One prediction about a patient, with all that its caller keeps."""
    folder = tmp_path_factory.mktemp("call")
    eve = suite.user("eve")
    answer = suite.ask(eve, patient=PATIENT)
    (folder / "receipt").write_bytes(answer.proof.receipt)
    (folder / "request").write_bytes(answer.request)
    (folder / "response").write_bytes(answer.response)
    return {"event_id": answer.proof.event_id, "index": answer.proof.log_index, "folder": folder}


def exported(suite: RunningSuite, output: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = suite.sealward("audit", "export", "--output", str(output), *arguments)
    return found


def test_fhir_lines_are_valid_private_and_recorded(
    suite: RunningSuite, asked: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "events.ndjson"
    said = exported(suite, output, "--user", "eve", "--type", "inference.*")
    data = output.read_bytes()
    lines = data.decode().splitlines()
    assert said["events"] == len(lines) >= 1
    assert said["sha256"] == sha256(data).hexdigest()
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [output]
    for line in lines:
        AuditEvent.model_validate_json(line)
    assert PATIENT not in data.decode()
    # The record of the export is an event of its own, with the number of events and the filters.
    shown = suite.event(said["export_event_id"])["span"]["attributes"]
    assert shown["sealward.event.type"] == "audit.export"
    assert shown["sealward.count"] == len(lines)
    assert shown["sealward.target"] == "fhir pseudonymous type=inference.* user=eve"
    identified = exported(suite, tmp_path / "i.ndjson", "--patient", PATIENT, "--identified")
    assert PATIENT in (tmp_path / "i.ndjson").read_text()
    shown = suite.event(identified["export_event_id"])["span"]["attributes"]
    assert shown["sealward.patient.reference"] == PATIENT
    assert shown["sealward.target"] == "fhir identified patient"


def test_csv_and_a_file_that_is_there_is_replaced_whole(
    suite: RunningSuite, asked: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "events.csv"
    output.write_text("old")
    exported(suite, output, "--format", "csv", "--event", asked["event_id"])
    (row,) = csv.DictReader(io.StringIO(output.read_text(), newline=""))
    assert row["event_id"] == asked["event_id"]
    assert int(row["log_index"]) == asked["index"]


def test_a_bundle_proves_the_callers_own_call(
    suite: RunningSuite, asked: dict[str, Any], tmp_path: Path
) -> None:
    mine = [
        "--format", "bundle", "--receipt", str(asked["folder"] / "receipt"),
        "--request", str(asked["folder"] / "request"),
        "--response", str(asked["folder"] / "response"),
    ]  # fmt: skip
    folder = tmp_path / "evidence"
    said = exported(suite, folder, *mine)
    assert said["events"] == 1
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    stem = f"events/{asked['event_id']}"
    assert files == {
        "README.txt", "checkpoint", "index.html", "log.vkey",
        f"{stem}.json", f"{stem}.leaf", f"{stem}.tlog-proof",
    }  # fmt: skip
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in files)
    verified = suite.sealward(
        "audit", "verify", "--receipt", str(folder / f"{stem}.tlog-proof"),
        "--vkey", str(folder / "log.vkey"),
    )  # fmt: skip
    assert verified["event_id"] == asked["event_id"]
    packed = tmp_path / "evidence.zip"
    exported(suite, packed, *mine)
    with zipfile.ZipFile(packed) as archive:
        assert f"evidence/{stem}.leaf" in archive.namelist()
    # Somebody else's response does not fit, and nothing is left behind.
    (asked["folder"] / "other").write_bytes(b"other")
    other = [
        str(asked["folder"] / "other") if m.endswith("response") and "/" in m else m for m in mine
    ]
    suite.sealward("audit", "export", "--output", str(tmp_path / "no"), *other, code=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evidence", "evidence.zip"]


def test_nothing_to_bundle_is_said(suite: RunningSuite, tmp_path: Path) -> None:
    suite.sealward(
        "audit", "export", "--format", "bundle", "--user", "nobody",
        "--output", str(tmp_path / "b"), code=2,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_cose_receipt_and_its_leaf(
    suite: RunningSuite, asked: dict[str, Any], tmp_path: Path
) -> None:
    receipt, leaf = tmp_path / "receipt.cose", tmp_path / "leaf"
    said = suite.sealward(
        "audit", "prove", asked["event_id"], "--format", "cose",
        "--output", str(receipt), "--leaf", str(leaf),
    )  # fmt: skip
    vkeys = parse_vkeys(suite.suite.vkey_file.read_text())
    found = verify_receipt(receipt.read_bytes(), leaf.read_bytes(), vkeys)
    assert found.index == said["log_index"] == asked["index"]
    assert parse_leaf(leaf.read_bytes()).event_id.hex() == asked["event_id"].replace("-", "")
    assert base64.b64decode(said["proof"]) == receipt.read_bytes()
    as_text = suite.sealward("audit", "prove", asked["event_id"])
    assert open_receipt(base64.b64decode(as_text["proof"]), vkeys).index == asked["index"]


def lines_of(page: dict[str, Any]) -> dict[str, str]:
    return {line["label"]: line["text"] for part in page["sections"] for line in part["lines"]}


def test_an_event_is_explained(suite: RunningSuite, asked: dict[str, Any], tmp_path: Path) -> None:
    said = lines_of(
        suite.sealward("audit", "explain", asked["event_id"], "--html", str(tmp_path / "e.html"))
    )
    assert said["actor"] == "user eve"
    assert said["purpose"] == "TREAT: treatment"
    assert said["card"] == "of this very file"
    assert said["summary"].startswith("Probability that a breast mass is malignant")
    assert said["rows"] == "1"
    assert said["verified now"].startswith("yes")
    assert said["place"].startswith(f"entry {asked['index']} of ")
    assert said["patient"].endswith(" (pseudonym)")
    identified = suite.sealward("audit", "explain", asked["event_id"], "--identified")
    assert lines_of(identified)["patient"] == PATIENT
    page = (tmp_path / "e.html").read_text()
    assert "Probability that a breast mass" in page
    assert stat.S_IMODE((tmp_path / "e.html").stat().st_mode) == 0o600


def test_a_patient_reads_no_member_of_staff(suite: RunningSuite, asked: dict[str, Any]) -> None:
    page = suite.sealward("audit", "explain", asked["event_id"], "--for-patient")
    assert lines_of(page)["Why"] == "treatment"
    assert "eve" not in {word.strip(".,:;") for word in json.dumps(page).split()}
    login = suite.sealward("audit", "query", "--user", "eve", "--type", "session.login")["events"]
    suite.sealward("audit", "explain", login[0]["event_id"], "--for-patient", code=2)


def test_reading_for_an_explanation_is_recorded(suite: RunningSuite, asked: dict[str, Any]) -> None:
    suite.sealward("audit", "explain", asked["event_id"])
    newest = suite.sealward("audit", "query", "--type", "audit.read", "--limit", "1")["events"]
    shown = suite.event(newest[0]["event_id"])["span"]["attributes"]
    assert shown["sealward.target"] == asked["event_id"].replace("-", "")


def test_an_export_by_anybody_else_is_refused_and_recorded(suite: RunningSuite) -> None:
    eve = suite.user("eve")
    material = user_material(suite.suite, eve)
    name = f"audit.{trust_domain(material)}"
    with open_channel(material, suite.suite.address("audit"), name) as channel:
        stub = ExportServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.ExportEvents(ExportEventsRequest(form="fhir"), timeout=10))
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    refused = suite.events(user=eve, type="access.denied", limit=1)
    assert [row.reason for row in refused] == ["IDENTITY_FORBIDDEN"]
