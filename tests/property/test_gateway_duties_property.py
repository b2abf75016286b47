"""Separate duties: who predicts does not administer, whatever parameters and facts there are."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.grants import LONGEST, REQUEST_SECONDS, SHORTEST, Grants
from services.gateway.policy import POLICY_RPCS, Facts, load_policy
from services.gateway.purposes import PURPOSES
from services.gateway.users import ROLES

POLICY = load_policy(None)
TEST = "HTEST"
DUTIES: dict[str, frozenset[str]] = {
    "grant access": frozenset({"ApproveAccess", "DenyAccess"}),
    "people": frozenset(
        {
            "CreateUser", "DisableUser", "SetRoles", "ResetPassword", "SetMembership",
            "IssueUserCertificate", "ResetFactors", "RevokeSessions", "RegisterClient",
            "RotateClientKeys", "DisableClient", "UnlockUser", "LinkIdentity", "UnlinkIdentity",
        }
    ),
    "policy": frozenset({"ProposePolicy", "ApprovePolicy", "RejectPolicy", "SetShadowPolicy"}),
    "destroy": frozenset({"RequestDestruction", "ApproveDestruction", "DropProject"}),
    "re-identify": frozenset({"Reidentify", "DrawCodes"}),
}  # fmt: skip
_PARAMETERS = st.lists(
    st.tuples(
        st.sampled_from([f"{role}.{key}" for role in ROLES for key in ("duty", "outputs")]),
        st.sampled_from(["billing", "all", "1"]),
    ),
    max_size=4,
).map(lambda pairs: tuple(sorted(dict(pairs).items())))
_FACTS = st.builds(
    Facts,
    actor=st.just("ada"),
    kind=st.sampled_from(["user", "workload"]),
    granted=st.just(False),
    break_glass=st.booleans(),
    patient=st.booleans(),
    second_factor=st.booleans(),
    parameters=_PARAMETERS,
)


def predicts(role: str, facts: Facts) -> set[str]:
    """The purposes for which a role predicts."""
    return {
        purpose
        for purpose in PURPOSES
        if POLICY.decide((role,), "ModelInfer", "m", purpose, facts).permitted
    }


def duties(role: str, facts: Facts) -> set[str]:
    return {
        duty
        for duty, rpcs in DUTIES.items()
        for rpc in rpcs & POLICY_RPCS
        if POLICY.decide((role,), rpc, "", "", facts).permitted
    }


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ROLES), _FACTS)
def test_who_predicts_about_patients_does_nothing_else(role: str, facts: Facts) -> None:
    if predicts(role, facts) - {TEST}:
        assert duties(role, facts) == set()
        assert role in {"clinician", "service", "break-glass"}
        if role == "break-glass":
            assert facts.break_glass
            assert facts.patient


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ROLES), _FACTS)
def test_each_duty_is_of_its_roles(role: str, facts: Facts) -> None:
    assert duties(role, facts) == {
        "security-admin": {"grant access", "people", "policy", "destroy"},
        "privacy-officer": {"grant access", "policy", "destroy", "re-identify"},
    }.get(role, set())


def test_the_only_ones_who_manage_people_cannot_lead_codes_back() -> None:
    for role in ROLES:
        assert not {"people", "re-identify"} <= duties(role, Facts("ada"))


# --- access for a while -----------------------------------------------------------------------

USERS, MODELS, REASONS = ("u1", "u2"), ("heart", "lung"), ("TREAT", "HRESCH")


class GrantsMachine(RuleBasedStateMachine):
    """Grants against a list of what was asked and decided, with a clock of its own."""

    folder: Path
    number = 0

    @initialize()
    def begin(self) -> None:
        GrantsMachine.number += 1
        self.now = 1_800_000_000.0
        self.path = self.folder / f"grants-{GrantsMachine.number}.db"
        self.grants = Grants(self.path, lambda: self.now)
        self.model: dict[str, dict[str, object]] = {}

    requests = Bundle("requests")

    @rule(
        target=requests,
        user=st.sampled_from(USERS),
        model=st.sampled_from(MODELS),
        purpose=st.sampled_from(REASONS),
        seconds=st.sampled_from([SHORTEST, 600, LONGEST]),
    )
    def request(self, user: str, model: str, purpose: str, seconds: int) -> object:
        open_ones = [m for m in self.model.values() if self._state(m) == "requested"]
        if sum(m["user"] == user for m in open_ones) >= 32:
            return multiple()
        made = self.grants.request(user, user, model, purpose, seconds, "")
        self.model[made.id] = {
            "user": user, "key": (user, model, purpose), "seconds": seconds, "state": "requested",
            "until": int(self.now) + REQUEST_SECONDS,
        }  # fmt: skip
        return made.id

    @rule(access=requests, by=st.sampled_from((*USERS, "")))
    def approve(self, access: str, by: str) -> None:
        known = self.model[access]
        may = self._state(known) == "requested" and by != known["user"]
        self._try(may, lambda: self.grants.approve(access, "user/x", by))
        if may:
            known["state"] = "granted"
            known["until"] = int(self.now) + int(str(known["seconds"]))

    @rule(access=requests)
    def deny(self, access: str) -> None:
        known = self.model[access]
        may = self._state(known) == "requested"
        self._try(may, lambda: self.grants.deny(access, "user/x"))
        if may:
            known["state"] = "denied"

    @rule(access=requests)
    def revoke(self, access: str) -> None:
        known = self.model[access]
        may = self._state(known) == "granted"
        self._try(may, lambda: self.grants.revoke(access, "user/x"))
        if may:
            known["state"] = "revoked"

    @rule(seconds=st.sampled_from([1, 59, 61, 601, LONGEST + 1, REQUEST_SECONDS + 1]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        self.grants.close()
        self.grants = Grants(self.path, lambda: self.now)

    @precondition(lambda self: hasattr(self, "grants"))
    @invariant()
    def covers_what_is_granted_and_nothing_else(self) -> None:
        granted = {m["key"] for m in self.model.values() if self._state(m) == "granted"}
        for key in itertools.product(USERS, MODELS, REASONS):
            assert self.grants.covers(*key) is (key in granted), key
        assert {a.id: a.state for a in self.grants.all()} == {
            access: self._state(known) for access, known in self.model.items()
        }

    def _state(self, known: dict[str, object]) -> str:
        state = str(known["state"])
        if state in ("requested", "granted") and self.now >= int(str(known["until"])):
            return "expired"
        return state

    @staticmethod
    def _try(may: bool, call: object) -> None:
        assert callable(call)
        if may:
            call()
            return
        with pytest.raises(SealwardError) as caught:
            call()
        assert caught.value.reason in (Reason.NOT_FOUND, Reason.POLICY_DENIED)

    def teardown(self) -> None:
        if hasattr(self, "grants"):
            self.grants.close()


def test_a_grant_is_for_its_model_purpose_and_time(tmp_path: Path) -> None:
    GrantsMachine.folder = tmp_path
    run_state_machine_as_test(
        GrantsMachine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
    )
