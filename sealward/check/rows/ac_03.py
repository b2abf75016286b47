"""AC-03: in an emergency the glass can be broken, and everybody sees it."""

from __future__ import annotations

import re
import time

from sealward.api.audit.v1 import review_pb2
from sealward.api.gateway.v1 import access_pb2, gateway_pb2
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.check import questions
from sealward.check.deployment import Deployment, Person
from sealward.check.row import Notes, Row

_LONGEST_SECONDS = 4 * 3600
_REASON = "system-outage"
_COUNTER = re.compile(rb"^sealward_gateway_break_glass_total\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)
_HOUR = 3600 * 1_000_000_000
_BREAK = f"{questions.GATEWAY}AccessService/BreakGlass"


def run(deployment: Deployment, notes: Notes) -> None:
    """Break the glass for a made-up patient: what does it open, who hears of it, who reviews it."""
    person = deployment.person("break-glass", fresh=True)
    message = questions.prediction(questions.models(deployment)[0])
    patient = f"{deployment.settings.canary}-AC03"
    reply = questions.infer(deployment, person, message, purpose="ETREAT", patient=patient)
    notes.check(
        reply.reason == "POLICY_DENIED",
        "the role alone opens nothing",
        f"the role alone opens predictions: {reply.said}",
    )
    before = _broken(deployment)
    asked = access_pb2.BreakGlassRequest(reason=_REASON, patient=patient)
    reply = deployment.call("gateway", _BREAK, asked.SerializeToString(), who=person)
    if not notes.check(
        reply.ok, "the glass breaks without an approver", f"it does not: {reply.said}"
    ):
        return
    opened = access_pb2.BreakGlassResponse.FromString(reply.body)
    seconds = opened.expires - int(time.time())
    notes.check(
        0 < seconds <= _LONGEST_SECONDS,
        f"emergency access ends by itself after {seconds // 60} minutes at most",
        "emergency access does not end within four hours",
    )
    notes.check(
        _broken(deployment) > before,
        "the alarm's counter rose at once",
        "no alarm: no counter rose",
    )
    _opens(deployment, notes, person, message, patient, opened)
    _reviewed(deployment, notes, person.name, reply.event_id)
    notes.limit("no identity provider or approver was stopped: none is asked when the glass breaks")


def _opens(
    deployment: Deployment,
    notes: Notes,
    person: Person,
    message: ModelInferRequest,
    patient: str,
    opened: access_pb2.BreakGlassResponse,
) -> None:
    emergency = {"purpose": "ETREAT", "token": opened.token}
    reply = questions.infer(deployment, person, message, patient=patient, **emergency)
    notes.check(
        reply.ok, "it opens the patient it was broken for", f"it does not open: {reply.said}"
    )
    other = questions.infer(deployment, person, message, patient=f"{patient}-other", **emergency)
    notes.check(
        other.reason == "POLICY_DENIED",
        "it opens no other patient",
        f"it opens another patient: {other.said}",
    )
    if reply.event_id:
        about = questions.record(deployment, reply.event_id)
        notes.check(
            about.get("sealward.break_glass") is True
            and about.get("sealward.break_glass.reason") == _REASON,
            "what is done under it is marked in the record, with the reason",
            "what is done under it is not marked in the record",
        )
    questions.asked(
        deployment, "gateway", f"{questions.GATEWAY}SessionService/RevokeSessions",
        gateway_pb2.RevokeSessionsRequest(session_id=opened.session_id),
    )  # fmt: skip
    gone = questions.until(
        lambda: not questions.infer(deployment, person, message, patient=patient, **emergency).ok,
        2.0,
    )
    notes.check(gone, "it can be ended at once", "it goes on after it was ended")


def _reviewed(deployment: Deployment, notes: Notes, name: str, event_id: str) -> None:
    reply = questions.asked(
        deployment, "audit", f"{questions.REVIEW}ListBreakGlass",
        review_pb2.ListBreakGlassRequest(limit=10_000),
    )  # fmt: skip
    waiting = review_pb2.ListBreakGlassResponse.FromString(reply.body).items
    notes.check(
        event_id.replace("-", "") in {item.event.event_id.hex() for item in waiting},
        "it waits for review",
        "it does not wait for review",
    )
    hours = deployment.settings.review_hours
    oldest = time.time_ns() - hours * _HOUR
    late = [
        item for item in waiting
        if item.event.actor != name and item.event.time_unix_nano <= oldest
    ]  # fmt: skip
    notes.check(
        not late,
        f"no emergency access waits longer than {hours} h for review",
        f"{len(late)} events under emergency access wait longer than {hours} h for review: "
        "sealward audit review list",
    )


def _broken(deployment: Deployment) -> float:
    return sum(float(value) for value in _COUNTER.findall(deployment.metrics("gateway")))


ROW = Row(
    id="AC-03",
    title="Emergency access: for one patient, for a short time, alarmed and reviewed",
    current="45 CFR 164.312(a)(2)(ii)",
    nprm="proposed 45 CFR 164.312(a)(2)(iii)",
    proves="the glass breaks with a reason and without an approver, opens one patient, is marked, "
    "counted and queued for review, can be ended; nothing waits too long for review",
    not_proven="that clinicians know how, and that an alarm reaches somebody at night",
    duty="write the emergency procedure, choose who may, train them, review every use",
    run=run,
)
