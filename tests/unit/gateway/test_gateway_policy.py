"""Policy sets: what they permit, which rule decides, and which are refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sealward.kit.errors import StartupError
from services.gateway.policy import (
    NO_RULE,
    POLICY_RPCS,
    SHIPPED,
    CedarPolicy,
    Facts,
    PolicyError,
    load_policy,
)
from services.gateway.purposes import PURPOSES
from services.gateway.users import ROLES
from tests.support.policy_table import Rule, Table

INFER = '@id("r") permit (principal in Role::"clinician", action == Action::"ModelInfer", resource)'


def rule(name: str = "r", *, permit: bool = True, models: str = "*") -> Rule:
    parts = (frozenset({part}) for part in ("clinician", "ModelInfer", models, "TREAT"))
    return Rule(name, permit, *parts)


def test_nothing_is_permitted_by_an_empty_set() -> None:
    policy = CedarPolicy("")
    for role, rpc in itertools.product(ROLES, POLICY_RPCS):
        decision = policy.decide((role,), rpc, "m", "TREAT")
        assert not decision.permitted
        assert decision.rule == NO_RULE


def test_each_part_of_a_rule_counts() -> None:
    policy = CedarPolicy(Table((rule(models="heart"),)).text())
    assert policy.decide(("clinician",), "ModelInfer", "heart", "TREAT").permitted
    assert policy.decide(("operator", "clinician"), "ModelInfer", "heart", "TREAT").permitted
    assert not policy.decide(("operator",), "ModelInfer", "heart", "TREAT").permitted
    assert not policy.decide(("clinician",), "ModelMetadata", "heart", "TREAT").permitted
    assert not policy.decide(("clinician",), "ModelInfer", "lung", "TREAT").permitted
    assert not policy.decide(("clinician",), "ModelInfer", "heart", "HMARKT").permitted
    assert not policy.decide(("clinician",), "ModelInfer", "heart", "").permitted
    assert not policy.decide((), "ModelInfer", "heart", "TREAT").permitted


def test_forbid_beats_permit_wherever_it_stands() -> None:
    rules = (rule(), rule("no-lung", permit=False, models="lung"))
    for order in (rules, rules[::-1]):
        policy = CedarPolicy(Table(order).text())
        decision = policy.decide(("clinician",), "ModelInfer", "lung", "TREAT")
        assert not decision.permitted
        assert decision.rule == "no-lung"
        assert policy.decide(("clinician",), "ModelInfer", "heart", "TREAT").rule == "r"


def test_a_policy_may_name_people_and_facts() -> None:
    policy = CedarPolicy(
        '@id("ann") permit (principal == User::"ann", action, resource);'
        '@id("grant") permit (principal, action == Action::"ModelInfer", resource)'
        " when { context.granted && context.secondFactor };"
        '@id("no-emergency") forbid (principal, action, resource)'
        ' when { context has purpose && context.purpose in PurposeGroup::"emergency"'
        " && !context.breakGlass };"
    )

    def permitted(purpose: str, facts: Facts) -> bool:
        return policy.decide(("clinician",), "ModelInfer", "m", purpose, facts).permitted

    assert permitted("TREAT", Facts("ann"))
    assert not permitted("TREAT", Facts("bob"))
    assert not permitted("TREAT", Facts("ann", kind="workload"))
    assert permitted("TREAT", Facts("bob", granted=True, second_factor=True))
    assert not permitted("TREAT", Facts("bob", granted=True))
    assert not permitted("ETREAT", Facts("ann"))
    assert permitted("ETREAT", Facts("ann", break_glass=True))


def test_a_policy_that_cannot_be_evaluated_closes() -> None:
    policy = CedarPolicy(
        INFER + ";" + '@id("limit") forbid (principal, action == Action::"ModelInfer", resource)'
        " when { 9223372036854775807 + (if context.patient then 1 else 0) == 0 };"
    )
    asked = (("clinician",), "ModelInfer", "m", "TREAT")
    assert policy.decide(*asked).permitted
    failed = policy.decide(*asked, Facts(patient=True))
    assert (failed.permitted, failed.rule) == (False, "rule-failed")


def test_the_decision_names_the_digest_of_the_text() -> None:
    one, two = CedarPolicy(INFER + ";"), CedarPolicy(INFER + ";\n")
    assert one.digest != two.digest
    assert one.decide(("clinician",), "ModelInfer", "m", "TREAT").digest == one.digest


def test_made_up_names_do_not_fill_the_memory() -> None:
    policy = CedarPolicy(INFER + '; @id("x") permit (principal == User::"x", action, resource);')
    for number in range(4500):
        policy.decide(("clinician",), "ModelInfer", f"m{number}", "TREAT", Facts(f"u{number}"))
    assert len(policy._known) <= 4096
    assert len(policy._principals) <= 4096


def test_the_shipped_set() -> None:
    policy = load_policy(None)
    permitted = {
        (role, rpc, purpose)
        for role, rpc, purpose in itertools.product(ROLES, POLICY_RPCS, [*PURPOSES, ""])
        if policy.decide((role,), rpc, "any", purpose).permitted
    }
    infer = {(role, purpose) for role, rpc, purpose in permitted if rpc == "ModelInfer"}
    assert {purpose for role, purpose in infer if role == "clinician"} == {
        "TREAT", "CAREMGT", "COC", "PATSFTY",
    }  # fmt: skip
    assert {role for role, _ in infer} == {"clinician", "service", "model-admin"}
    broken = Facts(break_glass=True, patient=True)
    assert {
        purpose
        for purpose in [*PURPOSES, ""]
        if policy.decide(("break-glass",), "ModelInfer", "any", purpose, broken).permitted
    } == {"ETREAT", "BTG"}
    people = {"CreateUser", "DisableUser", "ListUsers", "RevokeSessions", "ListSessions"}
    people |= {"SetRoles", "UnlockUser", "ResetPassword"}
    assert {role for role, rpc, _ in permitted if rpc in people} == {"security-admin"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("permit", "cannot be read"),
        ("permit (principal, action, resource);", "has an @id"),
        ('@id("R") permit (principal, action, resource);', "has an @id"),
        ('@id("default-deny") forbid (principal, action, resource);', "is kept"),
        (f"{INFER}; {INFER};", 'two policies have the @id "r"'),
        ('@id("r") permit (principal in Role::"root", action, resource);', "root"),
        ('@id("r") permit (principal, action == Action::"Infer", resource);', "Infer"),
        ('@id("r") permit (principal == Patient::"x", action, resource);', "Patient"),
        (INFER + ' when { context.purpose == Purpose::"TREAT" };', "optional attribute"),
        (INFER + ' when { context has purpose && context.purpose == Purpose::"CURIOSITY" };',
         'Purpose::"CURIOSITY" does not exist'),
        (INFER + " when { context.nope };", "nope"),
        ('@id("r") permit (principal == ?principal, action, resource);', "templates"),
        ("(" * 100_000, "cannot be read"),
        ("//" + "x" * (1 << 20), "more than"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=None) as refused:
        CedarPolicy(text)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 800


def test_a_policy_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError):
        load_policy(tmp_path / "none.cedar")
    broken = tmp_path / "broken.cedar"
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(StartupError):
        load_policy(broken)
    broken.write_text(SHIPPED.read_text()[:-2])
    with pytest.raises(StartupError, match="the policy file is refused"):
        load_policy(broken)
