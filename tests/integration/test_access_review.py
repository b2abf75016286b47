"""The access review of a running suite: who may call what, when they last did, and who asked."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from typing import Any

from tests.support.suites import RunningSuite


def reviewed(suite: RunningSuite, name: str, *more: str) -> Any:
    return suite.sealward("access", "review", "--of", name, *more)


def infer_right(found: Any, model: str) -> Any:
    (right,) = [
        right for right in found["rights"]
        if (right["rpc"], right["model"], right["how"]) == ("ModelInfer", model, "standing")
    ]  # fmt: skip
    return right


def test_who_may_call_what_and_when_they_last_did(suite: RunningSuite) -> None:
    name = suite.user("review-rita")
    before = infer_right(reviewed(suite, name), "breast-cancer")
    assert before["rule"] == "clinician-infer"
    assert before["purposes"] == ["CAREMGT", "COC", "PATSFTY", "TREAT"]
    assert (before["last_used"], before["uses"]) == (None, 0)
    suite.ask(name, purpose="COC")
    found = reviewed(suite, name)
    after = infer_right(found, "breast-cancer")
    assert after["uses"] == 1
    assert found["since"] < after["last_used"] <= found["until"]
    assert infer_right(found, "diabetes-progression")["uses"] == 0
    assert found["rule"] == "45 CFR 164.308(a)(4)(ii)(C)"
    (account,) = found["accounts"]
    assert account["last_used"] >= after["last_used"]
    assert (account["dormant"], account["disabled"]) == (False, False)
    policy = suite.sealward("policy", "show")["active"]
    assert found["policy"]["digest"] == policy["digest"]


def test_a_grant_a_disabled_account_and_another_time(suite: RunningSuite) -> None:
    name, pia = suite.user("review-greta"), suite.user("review-pia", "privacy-officer")
    asked = suite.sealward(
        "access", "request", "breast-cancer", "--user", name, "--purpose", "HRESCH",
        "--minutes", "5",
    )  # fmt: skip
    assert "grant" not in {right["how"] for right in reviewed(suite, name)["rights"]}
    suite.sealward("access", "approve", asked["id"], "--as", pia)
    (grant,) = [r for r in reviewed(suite, name, "--as", pia)["rights"] if r["how"] == "grant"]
    assert (grant["rule"], grant["purposes"]) == ("granted-infer", ["HRESCH"])
    assert grant["expires"]
    suite.sealward("access", "revoke", asked["id"], "--as", pia)
    suite.sealward("user", "disable", name)
    found = reviewed(suite, name)
    assert found["rights"] == []
    assert found["accounts"][0]["disabled"]
    # There was nobody of this name a year ago.
    assert reviewed(suite, pia, "--as-of", "52w")["accounts"] == []
    suite.sealward("access", "review", "--as-of", "2999-01-01", code=1)
    suite.sealward("access", "review", "--of", "nobody-at-all", code=1)


def test_asking_is_for_reviewers_and_on_record(suite: RunningSuite) -> None:
    ada, pia = suite.user("ada"), suite.user("review-pia", "privacy-officer")
    error = suite.sealward("access", "review", "--as", ada, code=1)["error"]
    assert error["reason"] == "POLICY_DENIED"
    reviewed(suite, ada, "--as", pia)
    (event, *_) = suite.events(type="access.review", outcome="ok", user=pia)
    assert event.target == ada


def test_a_table_for_the_reviewers_spreadsheet(suite: RunningSuite) -> None:
    name = suite.user("review-carla")
    done = subprocess.run(
        [
            sys.executable, "-m", "sealward.cli.main", "access", "review", "--csv", "--of", name,
            "--dir", str(suite.suite.root),
        ],
        capture_output=True, text=True, check=True, env=suite.environ,
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["name"] for row in rows} == {name}
    predicting = [row for row in rows if row["rpc"] == "ModelInfer"]
    assert {row["model"] for row in predicting} >= {"breast-cancer"}
    assert all(row["roles"] == "clinician" and row["rule"] for row in rows)
