"""What a privacy officer asks, through the command line, of a running suite."""

from __future__ import annotations

import json
from pathlib import Path

from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import open_receipt
from tests.support.suites import RunningSuite, rest_json

PATIENT = "MRN-review-7741"


def predict(suite: RunningSuite, tmp_path: Path, user: str, *more: str, code: int = 0) -> str:
    file = tmp_path / "in.json"
    file.write_text(rest_json())
    found = suite.sealward(
        "infer", "breast-cancer", "--input", str(file), "--user", user, *more, code=code
    )
    return str((found if code == 0 else found["error"])["event_id"])


def test_accounting_of_one_patient(suite: RunningSuite, tmp_path: Path) -> None:
    ada = suite.user("ada")
    treated = predict(suite, tmp_path, ada, "--patient", PATIENT)
    predict(suite, tmp_path, ada)
    folder = tmp_path / "receipts"
    accounted = suite.sealward(
        "audit", "accounting", "--patient", PATIENT, "--receipts", str(folder)
    )
    assert accounted["disclosures"] == []
    assert accounted["excluded"] >= 1
    seen = suite.sealward(
        "audit", "accounting", "--patient", PATIENT, "--access", "--receipts", str(folder)
    )
    rows = [row for row in seen["disclosures"] if row["type"] == "inference.predict"]
    assert [(r["recipient"], r["purpose"], r["outcome"]) for r in rows] == [(ada, "TREAT", "ok")]
    assert [event["event_id"] for event in rows[0]["events"]] == [treated]
    # The questions are in the record themselves, with the patient.
    asked = suite.sealward("audit", "query", "--type", "audit.report", "--patient", PATIENT)
    assert len(asked["events"]) == 2
    vkeys = parse_vkeys(suite.suite.vkey_file.read_text())
    proof = open_receipt((folder / f"{treated}.tlog-proof").read_bytes(), vkeys)
    assert proof.index == rows[0]["events"][0]["log_index"]
    assert PATIENT not in json.dumps(seen)


def test_suspension_hides_from_the_patient_alone(suite: RunningSuite) -> None:
    ask = ("audit", "accounting", "--patient", "MRN-suspended")
    done = suite.sealward(*ask, "--suspend", "OCR", "--suspend-until", "2099-01-01")
    assert done["suspended_until"].startswith("2098-12") or done["suspended_until"] >= "2099"
    error = suite.sealward(*ask, "--suspend", "OCR", code=2)["error"]
    assert "both" in error["message"]
    recorded = suite.sealward(
        "audit", "query", "--type", "audit.suspend", "--patient", "MRN-suspended"
    )
    assert len(recorded["events"]) == 1
    ended = suite.sealward(*ask, "--suspend", "OCR", "--suspend-until", "now")
    assert ended["suspended_until"] is None


def test_a_complete_reading_agrees_with_the_index(suite: RunningSuite, tmp_path: Path) -> None:
    ada = suite.user("ada")
    event = predict(suite, tmp_path, ada, "--patient", "MRN-complete")
    folder = tmp_path / "receipts"
    found = suite.sealward(
        "audit", "query", "--patient", "MRN-complete", "--type", "inference.*", "--complete",
        "--receipts", str(folder),
    )  # fmt: skip
    assert [e["event_id"] for e in found["events"]] == [event]
    assert [scan["differences"] for scan in found["scans"]] == [0]
    assert found["scans"][0]["entries"] > found["events"][0]["log_index"]
    assert {path.name for path in folder.iterdir()} == {f"{event}.tlog-proof"}


def test_activity_and_bursts(suite: RunningSuite, tmp_path: Path) -> None:
    ada = suite.user("ada")
    for _ in range(3):
        predict(suite, tmp_path, ada, "--purpose", "HRESCH", code=1)
    found = suite.sealward("audit", "bursts", "--threshold", "3", "--window", "600")["bursts"]
    assert any(burst["who"] == ada and "POLICY_DENIED" in burst["reasons"] for burst in found)
    rows = suite.sealward("audit", "activity", "--user", ada)["activity"]
    assert [row["name"] for row in rows] == [ada]
    assert rows[0]["denied"] >= 3
    models = suite.sealward("audit", "activity", "--by-model")["activity"]
    assert "breast-cancer" in [row["name"] for row in models]


def test_only_break_glass_is_signed_off(suite: RunningSuite, tmp_path: Path) -> None:
    event = predict(suite, tmp_path, suite.user("ada"))
    error = suite.sealward("audit", "review", "sign-off", event, "--verdict", "justified", code=1)[
        "error"
    ]
    assert "break-glass" in error["message"]
    waiting = suite.sealward("audit", "review", "list")["items"]
    assert event not in [item["event_id"] for item in waiting]
