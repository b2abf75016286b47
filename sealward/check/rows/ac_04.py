"""AC-04: who leaves is logged off, by the server."""

from __future__ import annotations

import time

from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_LOGIN = f"{questions.GATEWAY}SessionService/Login"
_LONGEST_LIFE = 24 * 3600
_ENDED = frozenset({"SESSION_EXPIRED", "SESSION_INVALID"})


def run(deployment: Deployment, notes: Notes) -> None:
    """Log in, do nothing that counts, and try to go on."""
    person = deployment.person("clinician", fresh=True)
    code = person.recovery.pop() if person.recovery else ""
    request = gw.LoginRequest(user=person.name, password=person.password, code=code)
    reply = deployment.call("gateway", _LOGIN, request.SerializeToString(), who=person, token="")
    if not reply.ok:
        notes.cannot(f"a second login is refused: {reply.said}")
    session = gw.LoginResponse.FromString(reply.body)
    life = session.expires - int(time.time())
    notes.check(
        0 < life <= _LONGEST_LIFE,
        f"a session ends after {life // 60} minutes whatever happens",
        "a session does not end within a day",
    )
    idle = session.idle_seconds
    if not notes.check(
        0 < idle <= life, f"and after {idle} s without a call", "an idle session does not end"
    ):
        return
    patience = deployment.settings.patience
    if idle + 5 > patience:
        notes.cannot(
            f"a session ends after {idle} s without a call, and the check waits {patience} s: "
            f"--patience {idle + 10}"
        )
    message = questions.prediction(questions.models(deployment)[0])
    ends = time.monotonic() + idle + 3
    while time.monotonic() < ends:
        # A connection that is kept alive is nobody at work.
        deployment.call("gateway", "/grpc.health.v1.Health/Check", who=person, token="")
        time.sleep(0.5)
    reply = questions.infer(deployment, person, message, purpose="TREAT", token=session.token)
    notes.check(
        reply.reason in _ENDED,
        f"after {idle} s it was ended ({reply.said}), though the connection was kept alive",
        f"an idle session goes on: {reply.said}",
    )


ROW = Row(
    id="AC-04",
    title="Sessions end by themselves: idle, and after a time whatever happens",
    current="45 CFR 164.312(a)(2)(iii)",
    nprm="proposed 45 CFR 164.312(a) (automatic logoff)",
    proves="the server ends a session that made no call for its idle time, though its connection "
    "lives; the absolute end is declared",
    not_proven="the absolute end is not waited for; screens of workstations lock by themselves or "
    "not",
    duty="choose the times by risk, lock workstations",
    run=run,
)
