"""A deployment that asks people for a second factor, from its first start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyotp
import pytest

from sealward.api.gateway.v1 import factor_pb2 as pb
from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.api.gateway.v1.factor_pb2_grpc import FactorServiceStub
from sealward.api.gateway.v1.gateway_pb2_grpc import SessionServiceStub
from sealward.cli.connect import user_channel
from tests.support.authenticator import ORIGIN, Authenticator
from tests.support.suites import RunningSuite, running


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    environ = {
        "SEALWARD_GATEWAY_POLICY_PROFILE": "second-factor",
        "SEALWARD_GATEWAY_WEBAUTHN_RP_ID": "hospital.example",
        "SEALWARD_GATEWAY_WEBAUTHN_ORIGINS": f"https://other.example, {ORIGIN}",
    }
    with running(tmp_path_factory.mktemp("profile") / "data", environ) as started:
        yield started


def enrol(suite: RunningSuite, name: str) -> None:
    begun = suite.sealward("factor", "begin", "--user", name)
    code = pyotp.TOTP(begun["secret"]).now()
    assert suite.sealward("factor", "confirm", "--user", name, "--code", code)["recovery_codes"]


def test_nobody_predicts_or_administers_without_a_second_factor(
    asking: RunningSuite, tmp_path: Path
) -> None:
    # The ceremony of the first start: the administrator of the machine, a one-time password.
    first = asking.suite.admin_password_file
    new = tmp_path / "new"
    new.write_text("a long password of the first one")
    new.chmod(0o600)
    logging_in = ["login", "--user", "admin", "--password-file"]
    asking.sealward(*logging_in, str(first), "--new-password-file", str(new))
    listing = ["policy", "show", "--as", "admin"]
    error = asking.sealward(*listing, code=1)["error"]
    assert (error["reason"], error["status"]) == ("STEP_UP_REQUIRED", "PERMISSION_DENIED")
    enrol(asking, "admin")
    shown = asking.sealward(*listing)
    assert "second-factor-lately" in shown["active"]["text"]
    # As it is in force already, the profile adds nothing to it.
    extended = asking.sealward("policy", "show", "--profile", "second-factor", "--as", "admin")
    assert extended["text"] == shown["active"]["text"]

    ann = asking.user("ann")
    refused = asking.refusal(ann)
    assert refused.details["reason"] == "STEP_UP_REQUIRED"
    assert "second-factor-of-people" in str(asking.event(refused.details["event_id"]))
    enrol(asking, ann)
    asking.ask(ann)
    explained = asking.sealward(
        "policy", "explain", "--user", ann, "--model", "breast-cancer", "--purpose", "TREAT"
    )
    assert (explained["permitted"], explained["rule"]) == (False, "second-factor-of-people")
    assert {"what": "multi_factor", "value": "yes", "rule": "clinician-infer"} in (
        explained["changes"]
    )


def test_a_security_key_from_its_enrolment_to_a_prediction(asking: RunningSuite) -> None:
    name, key = asking.user("key-kim"), Authenticator()
    with user_channel(asking.suite, name) as channel:
        factors, sessions = FactorServiceStub(channel), SessionServiceStub(channel)
        headers = (("authorization", f"Bearer {asking.token(name)}"),)
        begun = factors.BeginWebauthn(pb.BeginWebauthnRequest(), timeout=20, metadata=headers)
        made = factors.ConfirmWebauthn(
            pb.ConfirmWebauthnRequest(response_json=key.create(begun.options_json), name="blue"),
            timeout=20, metadata=headers,
        )  # fmt: skip
        assert len(made.recovery_codes) == 10
        asking.ask(name)  # the session has a second factor from now on
        proof = factors.BeginAssertion(pb.BeginAssertionRequest(), timeout=20)
        answer = sessions.Login(
            gw.LoginRequest(
                user=name, password=asking.password(name), assertion=key.get(proof.options_json)
            ),
            timeout=20,
        )
    assert answer.token
    shown = asking.sealward("factor", "list", "--user", name)
    assert [row["name"] for row in shown["keys"]] == ["blue"]
    asking.sealward("factor", "remove-key", shown["keys"][0]["credential_id"], "--user", name)
    assert asking.sealward("factor", "list", "--user", name)["keys"] == []


def test_a_running_deployment_turns_it_on(suite: RunningSuite) -> None:
    """The change itself is tried in test_suite_policy; here is the text that it is made with."""
    extended = suite.sealward("policy", "show", "--profile", "second-factor")["text"]
    assert "forbid (principal is User, action, resource)" in extended
    made = suite.sealward("policy", "propose", "--profile", "second-factor")
    assert made["text"] == extended
    suite.sealward("policy", "reject", made["digest"])
    error = suite.sealward("policy", "show", "--profile", "nothing", code=1)["error"]
    assert (error["reason"], error["field"]) == ("FIELD_INVALID", "profile")
    suite.sealward("policy", "propose", code=2)
