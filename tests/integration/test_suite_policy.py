"""The policy set through the command line of a running suite: a change, its record, its effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.kit.statement import verify
from tests.support.suites import RunningSuite, request, running

CASES = Path("docs/examples/policy-cases.json")
NO_COC = """
@id("no-coc") forbid (principal, action == Action::"ModelInfer", resource)
when { context has purpose && context.purpose == Purpose::"COC" };
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    with running(tmp_path_factory.mktemp("policy") / "data") as started:
        yield started


def test_a_change_by_two_people(own: RunningSuite, tmp_path: Path) -> None:
    ada = own.user("ada")
    sam = own.user("sam", "security-admin")
    pia = own.user("pia", "privacy-officer")
    shown = own.sealward("policy", "show")
    assert shown["active"]["version"] == 0
    site = tmp_path / "site.cedar"
    site.write_text(shown["active"]["text"] + NO_COC)

    found = own.sealward("policy", "diff", str(site))
    assert found["added"] == ["no-coc"]
    assert all(not row["opened"] and row["purposes"] == ["COC"] for row in found["differences"])
    assert {row["role"] for row in found["differences"]} == {"clinician", "service"}
    tried = own.sealward("policy", "test", str(CASES), "--policy", str(site))
    assert tried["failed"] == 0

    own.sealward("policy", "shadow", "--policy", str(site))
    own.ask(ada, purpose="COC")
    (row,) = own.sealward("policy", "shadow")["differences"]
    assert (row["opened"], row["rule"], row["calls"]) == (False, "no-coc", 1)
    own.sealward("policy", "shadow", "--off")

    refused = own.sealward("policy", "propose", str(site), "--as", ada, code=1)
    assert refused["error"]["reason"] == "POLICY_DENIED"
    made = own.sealward("policy", "propose", str(site), "--as", sam)
    refused = own.sealward("policy", "approve", made["digest"][:12], "--as", sam, code=1)
    assert refused["error"]["reason"] == "POLICY_DENIED"
    own.ask(ada, purpose="COC")
    active = own.sealward("policy", "approve", made["digest"][:12], "--as", pia)
    assert (active["version"], active["digest"]) == (1, made["digest"])
    signers = verify(json.dumps(active["jws"]).encode()).signers
    assert [s.identity.name for s in signers] == [sam, pia]

    assert own.refusal(ada, request(), purpose="COC").details["reason"] == "POLICY_DENIED"
    own.ask(ada, purpose="TREAT")
    explained = own.sealward(
        "policy", "explain", "--user", ada, "--model", "breast-cancer", "--purpose", "COC"
    )
    assert (explained["permitted"], explained["rule"]) == (False, "no-coc")
    assert "forbid" in explained["deciding"][0]["text"]

    (event,) = own.events(type="policy.change", outcome="ok")
    text = json.dumps(own.sealward("audit", "show", event.event_id.hex()))
    assert shown["active"]["digest"] in text
    assert active["digest"] in text


def test_it_stays_in_force_after_a_restart(own: RunningSuite) -> None:
    before = own.sealward("policy", "show")["active"]
    own.restarted("gateway", own.kill("gateway"))
    own.answers_again("ada")
    assert own.sealward("policy", "show")["active"] == before
    assert [b["version"] for b in own.sealward("policy", "list")["policies"]] == [1, 0]


def test_a_wrong_policy_is_refused_in_words(own: RunningSuite, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.cedar"
    wrong.write_text('@id("x") permit (principal in Role::"root", action, resource);')
    error = own.sealward("policy", "propose", str(wrong), code=1)["error"]
    assert error["reason"] == "FIELD_INVALID"
    assert "root" in error["message"]
