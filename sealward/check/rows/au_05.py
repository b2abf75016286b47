"""AU-05: logins are watched."""

from __future__ import annotations

from sealward.api.audit.v1 import review_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.questions import WRONG
from sealward.check.row import Notes, Row

_TRIES = 3


def run(deployment: Deployment, notes: Notes) -> None:
    """Log in well and badly; find both, with where they came from."""
    person = deployment.person("clinician", fresh=True)
    for _ in range(_TRIES):
        reply = deployment.login(person, password=WRONG)
        if reply.ok:
            notes.fault("a wrong password logs somebody in")
            return
    found = questions.events(deployment, user=person.name, type="session.login", limit=100)
    good = [event for event in found if event.outcome == "ok"]
    bad = [event for event in found if event.outcome != "ok"]
    notes.check(
        len(good) == 1, "a login is in the record", f"one login, and {len(good)} in the record"
    )
    if not notes.check(
        len(bad) == _TRIES and all(event.reason for event in bad),
        f"{_TRIES} failed logins are in the record, each with its reason",
        f"{_TRIES} logins failed, and {len(bad)} with a reason are in the record",
    ):
        return
    about = questions.record(deployment, bad[0].event_id)
    notes.check(
        bool(about.get("sealward.actor.cert")),
        "a failed login names the certificate key that it came with",
        "a failed login does not say where it came from",
    )
    reply = questions.asked(
        deployment, "audit", f"{questions.REVIEW}ListBursts",
        review_pb2.ListBurstsRequest(logins=True, threshold=_TRIES),
    )  # fmt: skip
    bursts = review_pb2.ListBurstsResponse.FromString(reply.body).bursts
    notes.check(
        any(burst.who == person.name for burst in bursts),
        "failed logins that come together are listed: sealward audit bursts --logins",
        "failed logins that come together are not listed",
    )


ROW = Row(
    id="AU-05",
    title="Log-in attempts are monitored",
    current="45 CFR 164.308(a)(5)(ii)(C)",
    nprm="proposed 45 CFR 164.312 (audit trail and system log controls)",
    proves="good and failed logins are in the record with their source, and failed ones that come "
    "together are listed",
    not_proven="that somebody is told: connect the alerts of docs/runbooks/alerts.yaml",
    duty="decide from when on somebody is called, and by whom",
    run=run,
)
