"""AC-07: whoever guesses passwords is stopped, and it shows."""

from __future__ import annotations

from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.questions import WRONG
from sealward.check.row import Notes, Row

MOST_TRIES = 20
_WRONG = "LOGIN_FAILED"


def run(deployment: Deployment, notes: Notes) -> None:
    """Guess until it is refused, then try the right password."""
    person = deployment.person("clinician", fresh=True)
    tries = 0
    reply = deployment.login(person, password=WRONG)
    while reply.reason == _WRONG and tries < MOST_TRIES:
        tries += 1
        reply = deployment.login(person, password=WRONG)
    if reply.ok:
        notes.fault("a wrong password logs somebody in")
        return
    if not notes.check(
        reply.reason != _WRONG,
        f"after {tries} wrong passwords: {reply.said}",
        f"{MOST_TRIES} wrong passwords, and the next one is tried",
    ):
        return
    right = deployment.login(person)
    notes.check(
        not right.ok,
        "then the right password waits as well",
        "the right password works in the middle of the guessing",
    )
    unlock = gw.UnlockUserRequest(user=person.name)
    done = deployment.call(
        "gateway", f"{questions.GATEWAY}UserService/UnlockUser", unlock.SerializeToString()
    )
    if notes.check(
        bool(done.ok and done.event_id),
        "an administrator unlocks, and that is in the record",
        f"nobody unlocks, or without a record: {done.said}",
    ):
        notes.check(
            deployment.login(person).ok,
            "then the right password works again",
            "and the right password does not work even then",
        )
    found = questions.events(deployment, user=person.name, type="session.login", limit=100)
    failed = [event for event in found if event.outcome != "ok"]
    notes.check(
        len(failed) >= tries,
        f"{len(failed)} failed logins are in the record",
        f"{tries} logins failed and {len(failed)} are in the record",
    )


ROW = Row(
    id="AC-07",
    title="Wrong passwords are counted, and stop",
    current="45 CFR 164.308(a)(5)(ii)(C)",
    nprm="proposed 45 CFR 164.312(a) (log-in attempts)",
    proves="after some wrong passwords even the right one is refused for a time, and each attempt "
    "is in the record",
    not_proven="guesses at an identity provider of the site",
    duty="say what reasonable is, and who unlocks after what question",
    run=run,
)
