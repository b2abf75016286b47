"""The policy set through the command line of a running suite: a change, its record, its effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.kit.statement import verify
from tests.support.searching import scraped
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


BILLING = """
@id("billing-infer") @outputs("malignant_probability, $service.outputs")
permit (principal in Role::"service", action == Action::"ModelInfer", resource is Model)
when {
  principal.hasTag("service.duty") && principal.getTag("service.duty") == "billing" &&
  context has purpose && context.purpose == Purpose::"HPAYMT"
};
"""


def test_outputs_by_role(own: RunningSuite, tmp_path: Path) -> None:
    bill, sam = own.user("bill", "service"), own.user("sam", "security-admin")
    pia = own.user("pia", "privacy-officer")
    site = tmp_path / "site.cedar"
    site.write_text(own.sealward("policy", "show")["active"]["text"] + BILLING)
    made = own.sealward("policy", "propose", str(site), "--as", sam)
    own.sealward("policy", "approve", made["digest"], "--as", pia)
    assert own.refusal(bill, purpose="HPAYMT").details["reason"] == "POLICY_DENIED"

    refused = own.sealward(
        "membership", "set", bill, "--role", "service", "duty=billing", "--as", pia, code=1
    )
    assert refused["error"]["reason"] == "POLICY_DENIED"
    own.sealward("membership", "set", bill, "--role", "service", "duty=billing", "--as", sam)
    listed = own.sealward("membership", "list", bill)["memberships"]
    assert listed == [{"user": bill, "role": "service", "parameters": {"duty": "billing"}}]
    own_right = own.sealward(
        "membership", "set", sam, "--role", "security-admin", "a=b", "--as", sam, code=1
    )
    assert own_right["error"]["reason"] == "POLICY_DENIED"
    changed = own.sealward("audit", "query", "--type", "membership.set", "--outcome", "ok")
    assert len(changed["events"]) == 1

    answer = own.ask(bill, purpose="HPAYMT")
    response = ModelInferResponse.FromString(answer.response)
    assert [output.name for output in response.outputs] == ["malignant_probability"]
    assert response.parameters["sealward_outputs_withheld"].string_param == "label"
    shown = own.event(answer.proof.event_id)["span"]["attributes"]
    assert shown["sealward.outputs.withheld"] == 1
    assert shown["sealward.outputs.withheld.names"] == ["label"]
    wanted = request()
    wanted.outputs.add(name="label")
    error = own.refusal(bill, wanted, purpose="HPAYMT")
    assert error.details["reason"] == "OUTPUTS_WITHHELD"
    assert own.event(error.details["event_id"])["span"]["attributes"]["sealward.outcome"] == (
        "denied"
    )

    explain = ("policy", "explain", "--model", "breast-cancer", "--purpose", "HPAYMT")
    assert own.sealward(*explain, "--user", bill)["outputs"] == ["malignant_probability"]
    asked = own.sealward(
        *explain, "--role", "service", "--parameter", "service.duty=billing",
        "--parameter", "service.outputs=label",
    )  # fmt: skip
    assert asked["outputs"] == ["label", "malignant_probability"]
    cases = tmp_path / "cases.json"
    case = {
        "name": "score alone", "roles": ["service"], "model": "breast-cancer",
        "purpose": "HPAYMT", "parameters": {"service.duty": "billing"}, "permitted": True,
        "outputs": ["malignant_probability"],
    }  # fmt: skip
    cases.write_text(json.dumps([case]))
    assert own.sealward("policy", "test", str(cases))["failed"] == 0
    cases.write_text(json.dumps([{**case, "outputs": ["*"]}]))
    assert own.sealward("policy", "test", str(cases), code=1)["failed"] == 1

    own.sealward("membership", "set", bill, "--role", "service", "duty=billing", "outputs=label")
    whole = ModelInferResponse.FromString(own.ask(bill, purpose="HPAYMT").response)
    assert {output.name for output in whole.outputs} == {"malignant_probability", "label"}
    assert "sealward_outputs_withheld" not in whole.parameters


QUOTA = """
@id("operator-tries") @quota("calls=3/day, concurrent=4")
permit (principal in Role::"operator", action == Action::"ModelInfer", resource is Model)
when { context has purpose && context.purpose == Purpose::"SYSDEV" };
"""


def test_a_quota_of_a_role(own: RunningSuite, tmp_path: Path) -> None:
    olga, ada = own.user("olga", "operator"), own.user("ada")
    sam, pia = own.user("sam", "security-admin"), own.user("pia", "privacy-officer")
    site = tmp_path / "site.cedar"
    site.write_text(own.sealward("policy", "show")["active"]["text"] + QUOTA)
    made = own.sealward("policy", "propose", str(site), "--as", sam)
    own.sealward("policy", "approve", made["digest"], "--as", pia)
    for _ in range(3):
        own.ask(olga, purpose="SYSDEV")
    error = own.refusal(olga, purpose="SYSDEV")
    assert error.details["reason"] == "QUOTA_EXCEEDED"
    assert "calls=3/day" in error.message
    token = own.token(olga)
    metadata = (("authorization", f"Bearer {token}"), ("sealward-purpose", "SYSDEV"))
    with pytest.raises(grpc.RpcError) as caught:
        own.raw(olga, metadata)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(caught.value.trailing_metadata())  # type: ignore[attr-defined]
    retry = RetryInfo()
    details = Status.FromString(trailers["grpc-status-details-bin"]).details
    assert any(one.Unpack(retry) for one in details)
    assert 0 < retry.retry_delay.seconds <= 86_400
    shown = own.event(error.details["event_id"])["span"]["attributes"]
    assert shown["sealward.outcome"] == "denied"
    assert shown["sealward.policy.id"] == "operator-tries"

    mine = own.sealward("quota", "show", "--as", olga)["quotas"]
    assert {(q["kind"], q["amount"], q["used"], q["user"]) for q in mine} == {
        ("calls", 3, 3, olga), ("concurrent", 4, 0, olga),
    }  # fmt: skip
    assert own.sealward("quota", "show", "--user", olga)["quotas"] == mine
    everybody = own.sealward("quota", "show", "--all")["quotas"]
    assert [q["user"] for q in everybody if q["kind"] == "calls"] == [olga]
    assert own.sealward("quota", "show", "--as", ada)["quotas"] == []
    refused = own.sealward("quota", "show", "--user", olga, "--as", ada, code=1)
    assert refused["error"]["reason"] == "POLICY_DENIED"
    explained = own.sealward("policy", "explain", "--user", olga, "--purpose", "SYSDEV",
                             "--model", "breast-cancer")  # fmt: skip
    assert explained["quotas"] == [
        "calls=3/day (operator-tries)", "concurrent=4 (operator-tries)",
    ]  # fmt: skip
    own.ask(ada)
    name = b'sealward_gateway_quota_refused_total{kind="calls",policy="operator-tries"}'
    assert any(name + b" 2.0" in page for page in scraped(own))
