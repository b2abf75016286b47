"""ID-02: people prove themselves twice."""

from __future__ import annotations

import time

from sealward.api.gateway.v1 import factor_pb2, policy_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_FACTOR = f"{questions.GATEWAY}FactorService/"
PERIOD = 30


def run(deployment: Deployment, notes: Notes) -> None:
    """Enrol a second factor; log in without it, with it, and with a used code."""
    person = deployment.person("clinician", fresh=True, bare=True)
    held = person.token
    # Another session, which will have proven nothing.
    if not deployment.login(person).ok:
        notes.cannot("a second login is refused")
    reply = deployment.call("gateway", f"{_FACTOR}BeginTotp", who=person)
    if not reply.ok:
        notes.cannot(f"a second factor cannot be enrolled: {reply.said}")
    secret = factor_pb2.BeginTotpResponse.FromString(reply.body).secret
    step = int(time.time()) // PERIOD
    confirm = factor_pb2.ConfirmTotpRequest(code=questions.totp(secret, step - 1))
    reply = deployment.call(
        "gateway", f"{_FACTOR}ConfirmTotp", confirm.SerializeToString(), who=person
    )
    if not reply.ok:
        notes.cannot(f"a second factor cannot be confirmed: {reply.said}")
    reply = deployment.login(person)
    notes.check(
        reply.reason == "SECOND_FACTOR_REQUIRED",
        "the password alone does not log in",
        f"the password alone logs in: {reply.said}",
    )
    code = questions.totp(secret, step)
    reply = deployment.login(person, code=code)
    notes.check(reply.ok, "password and code log in", f"password and code do not: {reply.said}")
    again = deployment.login(person, code=code)
    notes.check(not again.ok, "a code is worth one login", "a used code logs in again")
    reply = deployment.call("gateway", f"{_FACTOR}NewRecoveryCodes", who=person, token=held)
    notes.check(
        not reply.ok,
        f"what needs a fresh second factor is refused without one ({reply.said})",
        "recovery codes are drawn without a fresh second factor",
    )
    if deployment.settings.profile == "nprm":
        _asked_of_everybody(deployment, notes)
    else:
        notes.limit("that everybody has one is asked for by the proposed rule: --profile nprm")


def _asked_of_everybody(deployment: Deployment, notes: Notes) -> None:
    models = questions.models(deployment)
    asked = [
        policy_pb2.PolicyQuestion(
            roles=["clinician"], rpc="ModelInfer", model=model.name, purpose="TREAT", kind="user"
        )
        for model in models
    ]
    for model, result in zip(models, questions.decided(deployment, asked), strict=True):
        notes.check(
            not result.permitted,
            f"{model.name} asks people for a second factor",
            f"{model.name} answers people without a second factor, by {result.rule}: "
            "sealward policy propose --profile second-factor",
        )


ROW = Row(
    id="ID-02",
    title="People prove themselves with a second factor",
    current="45 CFR 164.312(d)",
    nprm="proposed 45 CFR 164.312 (authentication: multi-factor authentication)",
    proves="with a second factor the password alone does not log in, a code counts once, and what "
    "needs a fresh proof asks for it; under nprm, that the policy asks it of everybody",
    not_proven="that the second device is in the right hands",
    duty="enrol everybody, keep recovery codes apart, reset only after a question",
    run=run,
)
