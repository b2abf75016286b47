"""Access for a while and emergency access, through the command line of a running suite."""

from __future__ import annotations

from pathlib import Path

from tests.support.suites import RunningSuite, request, rest_json

PATIENT, OTHER = "MRN-emergency-1", "MRN-emergency-2"


def test_a_grant_by_somebody_else(suite: RunningSuite) -> None:
    ada, pia = suite.user("ada"), suite.user("access-pia", "privacy-officer")
    asked = suite.sealward(
        "access", "request", "breast-cancer", "--user", ada, "--purpose", "HRESCH",
        "--minutes", "5", "--ticket", "IRB-2026/7",
    )  # fmt: skip
    assert asked["state"] == "requested"
    refusal = suite.refusal(ada, request(), purpose="HRESCH")
    assert refusal.details["reason"] == "POLICY_DENIED"
    error = suite.sealward("access", "approve", asked["id"], "--as", ada, code=1)["error"]
    assert error["reason"] == "POLICY_DENIED"
    error = suite.sealward("access", "list", "--all", "--as", ada, code=1)["error"]
    assert error["reason"] == "POLICY_DENIED"
    granted = suite.sealward("access", "approve", asked["id"], "--as", pia)
    assert (granted["state"], granted["decided_by"]) == ("granted", "user/access-pia")
    suite.ask(ada, purpose="HRESCH")
    refusal = suite.refusal(ada, request("diabetes-progression"), purpose="HRESCH")
    assert refusal.details["reason"] == "POLICY_DENIED"
    rows = suite.sealward("access", "list", "--as", ada)["access"]
    assert [row["id"] for row in rows] == [asked["id"]]
    suite.sealward("access", "revoke", asked["id"], "--as", ada)
    assert suite.refusal(ada, request(), purpose="HRESCH").details["reason"] == "POLICY_DENIED"
    found = suite.events(type="access.approve", outcome="ok")
    assert asked["id"] in [event.target for event in found]


def test_breaking_the_glass(suite: RunningSuite, tmp_path: Path) -> None:
    eve = suite.user("emergency-eve", "break-glass")
    file = tmp_path / "in.json"
    file.write_text(rest_json())
    ask = ["infer", "breast-cancer", "--input", str(file), "--user", eve]
    assert suite.sealward(*ask, "--patient", PATIENT, code=1)["error"]["reason"] == "POLICY_DENIED"
    missing = suite.sealward(*ask, "--patient", PATIENT, "--break-glass", code=1)["error"]
    assert missing["reason"] == "SESSION_MISSING"
    breaking = ["access", "break-glass", "--user", eve, "--patient", PATIENT, "--reason"]
    error = suite.sealward(*breaking, "because Jane Doe is ill", code=1)["error"]
    assert (error["reason"], error["field"]) == ("FIELD_INVALID", "reason")
    opened = suite.sealward(*breaking, "life-threat")
    answer = suite.sealward(*ask, "--patient", PATIENT, "--break-glass")
    error = suite.sealward(*ask, "--patient", OTHER, "--break-glass", code=1)["error"]
    assert (error["reason"], error["field"]) == ("POLICY_DENIED", "sealward-patient")

    waiting = suite.sealward("audit", "review", "list")["items"]
    mine = [item for item in waiting if item["event_id"] == answer["event_id"]]
    assert len(mine) == 1
    (record,) = [
        event for event in suite.events(type="session.break-glass", outcome="ok")
        if event.target == opened["session_id"]
    ]  # fmt: skip
    assert record.break_glass
    assert PATIENT not in str(record)
    about = suite.events(patient=PATIENT)
    assert {record.event_id, *(e.event_id for e in about)} == {e.event_id for e in about}
    log = (suite.suite.logs / "gateway.log").read_text()
    assert "access.break-glass" in log
    assert PATIENT not in log

    suite.sealward("session", "revoke", opened["session_id"])
    error = suite.sealward(*ask, "--patient", PATIENT, "--break-glass", code=1)["error"]
    assert error["reason"] == "SESSION_INVALID"
    assert error["advice"].startswith("sealward access break-glass --user emergency-eve ")
