"""IR-01: after an incident it can be said who and what was touched."""

from __future__ import annotations

import time

from sealward.api.audit.v1 import review_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

LONGEST_SECONDS = 10.0
_PATIENTS = 2


def run(deployment: Deployment, notes: Notes) -> None:
    """Take a session for stolen: list exactly its calls, patients and models."""
    person = deployment.person("clinician", fresh=True)
    other = deployment.person("clinician")
    model = questions.models(deployment)[0]
    message = questions.prediction(model)
    sent = set()
    for number in range(_PATIENTS):
        patient = f"{deployment.settings.canary}-IR01-{number}"
        reply = questions.infer(deployment, person, message, purpose="TREAT", patient=patient)
        if not reply.ok:
            notes.cannot(f"a prediction is not answered: {reply.said}")
        sent.add(reply.event_id.replace("-", ""))
    questions.infer(deployment, other, message, purpose="TREAT", patient=f"{patient}-other")
    began = time.monotonic()
    rows = questions.events(
        deployment, session=person.session_id, type="inference.predict", limit=1000
    )
    took = time.monotonic() - began
    notes.check(
        {row.event_id.hex() for row in rows} == sent,
        f"the session's {len(sent)} calls are listed, and no others",
        f"the session made {len(sent)} calls, {len(rows)} are listed",
    )
    patients = {row.patient for row in rows}
    notes.check(
        len(patients - {""}) == _PATIENTS and {row.model for row in rows} == {model.name},
        f"with {_PATIENTS} patients, by pseudonym, and the model",
        "patients or model of the session's calls are not told",
    )
    notes.check(
        took <= LONGEST_SECONDS, f"in {took:.1f} s", f"it took {took:.0f} s to list one session"
    )
    request = review_pb2.ReportDisclosuresRequest(
        patient=f"{deployment.settings.canary}-IR01-0", access=True
    )
    reply = questions.asked(deployment, "audit", f"{questions.REVIEW}ReportDisclosures", request)
    who = [
        row.recipient
        for row in review_pb2.ReportDisclosuresResponse.FromString(reply.body).disclosures
    ]
    notes.check(
        who == [person.name],
        "and the other way round: who looked at a patient",
        "who looked at a patient is not told",
    )


ROW = Row(
    id="IR-01",
    title="After an incident the patients, calls and models are told in seconds",
    current="45 CFR 164.308(a)(6)(ii), 164.410",
    nprm="proposed 45 CFR 164.308(a) (security incident response; notice within 24 hours)",
    proves="from a session's id exactly its calls, patients and models are listed, and from a "
    "patient who looked",
    not_proven="what a thief did elsewhere",
    duty="have an incident plan, try it, notify in time",
    run=run,
    writes=True,
)
