"""AU-04: activity can be reviewed, and a review is itself a record."""

from __future__ import annotations

import time

from sealward.api.audit.v1 import review_pb2
from sealward.api.gateway.v1 import access_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_BURST = 6
_HOUR = 3600 * 1_000_000_000


def run(deployment: Deployment, notes: Notes) -> None:
    """Leave activity, a burst of refusals and an emergency; find all three, and sign one off."""
    person = deployment.person("clinician", fresh=True)
    message = questions.prediction(questions.models(deployment)[0])
    questions.infer(deployment, person, message, purpose="TREAT")
    for _ in range(_BURST):
        questions.infer(deployment, person, message, purpose="HMARKT")
    since = time.time_ns() - _HOUR
    reply = questions.asked(
        deployment, "audit", f"{questions.REVIEW}ListActivity",
        review_pb2.ListActivityRequest(since_unix_nano=since, user=person.name),
    )  # fmt: skip
    rows = review_pb2.ListActivityResponse.FromString(reply.body).rows
    notes.check(
        any(row.name == person.name and row.ok and row.denied >= _BURST for row in rows),
        "the report of activity has who did how much, and what was refused",
        "the report of activity lacks what was just done",
    )
    reply = questions.asked(
        deployment, "audit", f"{questions.REVIEW}ListBursts",
        review_pb2.ListBurstsRequest(since_unix_nano=since, threshold=_BURST),
    )  # fmt: skip
    bursts = review_pb2.ListBurstsResponse.FromString(reply.body).bursts
    notes.check(
        any(burst.who == person.name and burst.count >= _BURST for burst in bursts),
        f"{_BURST} refusals that came together are listed",
        f"{_BURST} refusals that came together are not listed",
    )
    _sign_off(deployment, notes)


def _sign_off(deployment: Deployment, notes: Notes) -> None:
    person = deployment.person("break-glass")
    patient = f"{deployment.settings.canary}-AU04"
    asked = access_pb2.BreakGlassRequest(reason="other", patient=patient)
    method = f"{questions.GATEWAY}AccessService/BreakGlass"
    reply = deployment.call("gateway", method, asked.SerializeToString(), who=person)
    if not reply.ok:
        notes.cannot(f"there is nothing to review: the glass does not break ({reply.said})")
    event = bytes.fromhex(reply.event_id.replace("-", ""))
    notes.check(_waits(deployment, event), "emergency access waits for review", "it is in no queue")
    decided = deployment.call(
        "audit", f"{questions.REVIEW}SignOff",
        review_pb2.SignOffRequest(event_id=event, verdict="justified").SerializeToString(),
    )  # fmt: skip
    if not notes.check(
        bool(decided.ok and decided.event_id), "it can be signed off", "it cannot be signed off"
    ):
        return
    about = questions.record(deployment, decided.event_id)
    notes.check(
        about.get("sealward.event.type") == "audit.review"
        and about.get("sealward.review.verdict") == "justified"
        and not _waits(deployment, event),
        "the decision is a record, and the event waits no more",
        "the decision is not in the record, or the event still waits",
    )


def _waits(deployment: Deployment, event: bytes) -> bool:
    reply = questions.asked(
        deployment, "audit", f"{questions.REVIEW}ListBreakGlass",
        review_pb2.ListBreakGlassRequest(limit=10_000),
    )  # fmt: skip
    items = review_pb2.ListBreakGlassResponse.FromString(reply.body).items
    return any(item.event.event_id == event for item in items)


ROW = Row(
    id="AU-04",
    title="Activity can be reviewed, and the review is recorded",
    current="45 CFR 164.308(a)(1)(ii)(D)",
    nprm="proposed 45 CFR 164.308(a) (information system activity review)",
    proves="activity by user, bursts of refusals and emergency access are listed; a sign-off is an "
    "event of its own",
    not_proven="that anybody reviews",
    duty="review regularly, by somebody who did not do it, and keep what came of it",
    run=run,
)
