"""The profile that asks people for a second factor: what it closes, and what stays open."""

from __future__ import annotations

import itertools

import pytest

from sealward.kit.reasons import Reason
from services.gateway.policy import POLICY_RPCS, SHIPPED, Facts, PolicyError, load_policy
from services.gateway.policy.profiles import PROFILES, with_profile
from services.gateway.policy.refusal import refusal
from services.gateway.users import ROLES

PLAIN = load_policy(None)
ASKING = load_policy(None, "second-factor")
NONE = Facts("ann", "user")
ONCE = Facts("ann", "user", multi_factor=True)
LATELY = Facts("ann", "user", second_factor=True, multi_factor=True)
PROGRAM = Facts("lab", "workload")
TO_ENROL = {"ListFactors", "BeginTotp", "ConfirmTotp", "StepUp", "BeginWebauthn", "ConfirmWebauthn"}
TO_LEAVE = {"WatchSession", "Logout", "GetConsistency", "GetReceipt"}
ANY_AGE = {
    "ModelInfer", "ModelReady", "ModelMetadata", "ServerMetadata", "RequestAccess", "ListAccess",
    "RevokeAccess", "BreakGlass", "ListSessions", "ListUsers", "ListClients", "ListIdentities",
    "ListMemberships", "ListQuotas", "ListDestructions", "GetPolicy", "ListPolicies",
    "ExplainPolicy", "TestPolicy", "DiffPolicy", "GetShadowPolicy",
}  # fmt: skip
SENSITIVE = POLICY_RPCS - ANY_AGE - TO_ENROL - TO_LEAVE
"""An RPC that is added is sensitive until somebody says otherwise."""


def test_it_opens_nothing_and_closes_what_it_says() -> None:
    for role, rpc in itertools.product(ROLES, sorted(POLICY_RPCS)):
        asked = ((role,), rpc, "m" if rpc == "ModelInfer" else "", "TREAT")
        before = PLAIN.decide(*asked, NONE).permitted
        assert ASKING.decide(*asked, LATELY).permitted is before
        assert ASKING.decide(*asked, PROGRAM).permitted is before
        assert ASKING.decide(*asked, ONCE).permitted is (before and rpc not in SENSITIVE)
        without = ASKING.decide(*asked, NONE).permitted
        assert without is (before and rpc in TO_ENROL | TO_LEAVE), (role, rpc)


def test_what_changes_access_is_sensitive() -> None:
    assert {
        "CreateUser", "DisableUser", "SetRoles", "ResetPassword", "IssueUserCertificate",
        "RevokeSessions", "ResetFactors", "RegisterClient", "RotateClientKeys", "DisableClient",
        "LinkIdentity", "UnlinkIdentity", "ApproveAccess", "DenyAccess", "SetMembership",
        "ProposePolicy", "ApprovePolicy", "RejectPolicy", "SetShadowPolicy", "RemoveFactors",
        "RequestDestruction", "ApproveDestruction",
    } <= SENSITIVE  # fmt: skip


def test_emergency_access_has_what_it_needs() -> None:
    breaking = (("break-glass",), "BreakGlass", "", "")
    assert not ASKING.decide(*breaking, NONE).permitted
    assert ASKING.decide(*breaking, ONCE).permitted
    opened = Facts("eve", "user", break_glass=True, patient=True)
    assert ASKING.decide(("break-glass",), "ModelInfer", "m", "ETREAT", opened).permitted


@pytest.mark.parametrize(
    ("facts", "rpc", "reason", "said"),
    [
        (NONE, "CreateUser", Reason.STEP_UP_REQUIRED, "enrol"),
        (ONCE, "CreateUser", Reason.STEP_UP_REQUIRED, "anew"),
        (NONE, "ModelInfer", Reason.POLICY_DENIED, "no rule"),
        (LATELY, "ModelInfer", Reason.POLICY_DENIED, "no rule"),
        (PROGRAM, "ApproveAll", Reason.POLICY_DENIED, "no rule"),
    ],
)
def test_the_refusal_says_what_would_help(
    facts: Facts, rpc: str, reason: Reason, said: str
) -> None:
    found = refusal(ASKING, ("security-admin",), rpc, "", "", facts, "no rule permits it")
    assert found.reason is reason
    assert said in found.message


def test_a_profile_is_added_once() -> None:
    text = SHIPPED.read_text()
    for name in PROFILES:
        extended = with_profile(text, name)
        assert extended.startswith(text.rstrip())
        assert with_profile(extended, name) == extended
    with pytest.raises(PolicyError):
        with_profile(text, "../shipped")
