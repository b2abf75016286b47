"""The access review says what the policy set decides, no more and no less."""

from __future__ import annotations

import itertools

import pytest

from sealward.api.audit.v1 import review_pb2 as audit_pb
from sealward.kit.access import OPEN
from services.gateway.grants import Access
from services.gateway.policy import load_policy
from services.gateway.policy.cedar import CedarPolicy
from services.gateway.policy.interface import Facts
from services.gateway.policy.schema import POLICY_RPCS
from services.gateway.purposes import PURPOSES
from services.gateway.review import INFER, Right, Subject, rights
from services.gateway.review_servicer import _held, _Uses
from services.gateway.users import ROLES

MODELS = ("breast-cancer", "diabetes-progression")


def subject(*roles: str, name: str = "ann", disabled: bool = False) -> Subject:
    return Subject("1", name, "user", roles, disabled, 0)


def predicting(found: list[Right], how: str) -> set[tuple[str, str]]:
    return {
        (right.model, purpose)
        for right in found
        if right.rpc == INFER and right.how == how
        for purpose in right.purposes
    }


@pytest.mark.parametrize("role", ROLES)
def test_standing_rights_are_the_decisions_of_the_policy(role: str) -> None:
    policy = load_policy(None)
    found = rights(policy, subject(role), MODELS, [])
    assert predicting(found, "standing") == {
        (model, purpose)
        for model, purpose in itertools.product(MODELS, PURPOSES)
        if policy.decide((role,), INFER, model, purpose).permitted
    }
    control = {right.rpc for right in found} - {INFER}
    assert control == {
        rpc for rpc in POLICY_RPCS - OPEN - {INFER} if policy.decide((role,), rpc, "", "").permitted
    }
    for right in found:
        if right.how == "standing":
            purpose = right.purposes[0] if right.purposes else ""
            assert policy.decide((role,), right.rpc, right.model, purpose).rule == right.rule


def test_what_is_permitted_before_a_session_is_nobodys_right() -> None:
    assert OPEN <= POLICY_RPCS
    policy = load_policy(None)
    for role in ROLES:
        assert not OPEN & {right.rpc for right in rights(policy, subject(role), MODELS, [])}


def test_a_disabled_account_may_do_nothing() -> None:
    assert rights(load_policy(None), subject("clinician", disabled=True), MODELS, []) == []


def test_a_grant_is_told_apart() -> None:
    grant = Access(
        "a" * 32, "1", "ann", MODELS[0], "HRESCH", 60, "", "granted", 1, 2, 62, "user/pia"
    )
    found = rights(load_policy(None), subject("clinician"), MODELS, [grant])
    assert predicting(found, "grant") == {(MODELS[0], "HRESCH")}
    (right,) = [right for right in found if right.how == "grant"]
    assert (right.rule, right.expires) == ("granted-infer", 62)
    assert (MODELS[0], "HRESCH") not in predicting(found, "standing")


def test_a_grant_holds_between_its_approval_and_its_end() -> None:
    def held(state: str, decided: int, at: int) -> bool:
        return _held(Access("a", "1", "ann", "m", "TREAT", 60, "", state, 1, decided, 62, ""), at)

    assert held("granted", 2, 30)
    assert held("expired", 2, 30)
    assert not held("expired", 2, 62)
    assert not held("granted", 40, 30)
    # A request that nobody decided.
    assert not held("expired", 0, 30)
    assert not held("denied", 2, 30)


def test_emergency_access_is_told_apart() -> None:
    found = rights(load_policy(None), subject("clinician", "break-glass"), MODELS, [])
    assert predicting(found, "emergency") == set(itertools.product(MODELS, ("BTG", "ETREAT")))
    assert "ETREAT" not in {purpose for _, purpose in predicting(found, "standing")}


def test_a_second_factor_is_told() -> None:
    text = """
    @id("asks")
    permit (principal in Role::"clinician", action == Action::"ModelInfer", resource is Model)
    when { context.secondFactor && context has purpose && context.purpose == Purpose::"TREAT" };
    @id("does-not")
    permit (principal in Role::"clinician", action == Action::"ModelInfer", resource is Model)
    when { context has purpose && context.purpose == Purpose::"COC" };
    """
    found = rights(CedarPolicy(text), subject("clinician"), MODELS[:1], [])
    assert {(right.purposes, right.rule, right.second_factor) for right in found} == {
        (("TREAT",), "asks", True), (("COC",), "does-not", False),
    }  # fmt: skip


def test_a_policy_that_names_somebody() -> None:
    text = """
    @id("ann-alone")
    permit (principal == User::"ann", action == Action::"GetPolicy", resource);
    """
    policy = CedarPolicy(text)
    assert [right.rpc for right in rights(policy, subject("operator"), MODELS, [])] == ["GetPolicy"]
    assert rights(policy, subject("operator", name="bob"), MODELS, []) == []
    assert policy.decide(("operator",), "GetPolicy", "", "", Facts("ann")).permitted


def test_the_last_use_of_a_right() -> None:
    def use(event_type: str, model: str, purpose: str, last: int, count: int) -> audit_pb.Use:
        return audit_pb.Use(
            actor="ann", kind="user", type=event_type, model=model, purpose=purpose,
            last_unix_nano=last * 10**9, count=count,
        )  # fmt: skip

    used = _Uses(
        [
            use("inference.predict", MODELS[0], "TREAT", 50, 3),
            use("inference.predict", MODELS[0], "COC", 70, 2),
            use("inference.predict", MODELS[0], "HRESCH", 90, 9),
            use("model.metadata", MODELS[0], "", 30, 1),
            use("policy.read", "", "", 20, 4),
        ]
    )
    ann, bob = subject("clinician"), subject("clinician", name="bob")

    def of(rpc: str, model: str, *purposes: str, who: Subject = ann) -> tuple[int, int]:
        found = used.of(who, Right(rpc, model, purposes, "rule", "standing", False))
        return found.last, found.count

    assert of(INFER, MODELS[0], "COC", "TREAT") == (70, 5)
    assert of(INFER, MODELS[1], "COC", "TREAT") == (0, 0)
    assert of(INFER, MODELS[0], "TREAT", who=bob) == (0, 0)
    assert of("ModelMetadata", MODELS[0]) == (30, 1)
    assert of("ModelMetadata", MODELS[1]) == (0, 0)
    assert of("GetPolicy", "") == of("ListPolicies", "") == (20, 4)
    assert (used.last(ann), used.last(bob)) == (90, 0)
