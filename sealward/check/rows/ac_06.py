"""AC-06: whose access is ended has none."""

from __future__ import annotations

import time

from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

UNARY_SECONDS = 1.0
_REFUSED = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})


def run(deployment: Deployment, notes: Notes) -> None:
    """Disable somebody who is logged in; their session and their password open nothing."""
    person = deployment.person("clinician", fresh=True)
    message = questions.prediction(questions.models(deployment)[0])
    reply = questions.infer(deployment, person, message, purpose="TREAT")
    if not reply.ok:
        notes.cannot(f"a logged-in clinician is not answered: {reply.said}")
    questions.asked(
        deployment, "gateway", f"{questions.GATEWAY}UserService/DisableUser",
        gw.DisableUserRequest(user=person.name),
    )  # fmt: skip
    began = last = time.monotonic()
    refused = ""
    while time.monotonic() - began < 2 * UNARY_SECONDS:
        reply = questions.infer(deployment, person, message, purpose="TREAT")
        if reply.ok:
            last = time.monotonic()
        elif reply.code in _REFUSED:
            refused = reply.said
            break
        time.sleep(0.02)
    took = last - began
    if notes.check(
        bool(refused), f"the session ended: {refused}", "a disabled user's session goes on"
    ):
        notes.check(
            took <= UNARY_SECONDS,
            "no call was answered a second after the user was disabled",
            "calls were answered more than a second after the user was disabled",
        )
    reply = deployment.login(person)
    notes.check(not reply.ok, "the password logs nobody in", "a disabled user logs in")
    csr = gw.IssueUserCertificateRequest(user=person.name, csr=b"x")
    issue = f"{questions.GATEWAY}UserService/IssueUserCertificate"
    reply = deployment.call("gateway", issue, csr.SerializeToString(), who=person)
    notes.check(
        not reply.ok, "the certificate is not renewed", "a disabled user's certificate is renewed"
    )
    notes.limit("streams of callers are not served by this version; certificates run out in a day")


ROW = Row(
    id="AC-06",
    title="Ended access is ended: sessions, password, certificate",
    current="45 CFR 164.308(a)(3)(ii)(C)",
    nprm="proposed 45 CFR 164.308(a) (workforce: access ended within an hour, notice in 24 hours)",
    proves="a disabled user's session is refused within a second, their password and the renewal "
    "of their certificate at once",
    not_proven="that somebody disables the account when a person leaves",
    duty="tell the administrator when somebody leaves or changes jobs; tell others who gave access",
    run=run,
)
