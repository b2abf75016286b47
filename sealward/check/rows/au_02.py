"""AU-02: without a record there is no answer."""

from __future__ import annotations

from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_RECOVERY_SECONDS = 30.0


def run(deployment: Deployment, notes: Notes) -> None:
    """Hold the audit service still: nobody is answered; let it go: everybody is."""
    person = deployment.person("clinician")
    message = questions.prediction(questions.models(deployment)[0])
    first = questions.infer(deployment, person, message, purpose="TREAT")
    if not first.ok:
        notes.cannot(f"a prediction is not answered before either: {first.said}")
    with deployment.held("audit"):
        held = questions.infer(deployment, person, message, purpose="TREAT", seconds=15.0)
        control = deployment.call(
            "gateway", f"{questions.GATEWAY}FactorService/ListFactors", who=person, seconds=15.0
        )
    for what, reply in (("a prediction", held), ("a control call", control)):
        notes.check(
            not reply.ok,
            f"{what} is not answered while the log cannot take its record ({reply.said})",
            f"{what} was answered while the log could not take its record",
        )
    again = questions.until(
        lambda: questions.infer(deployment, person, message, purpose="TREAT").ok, _RECOVERY_SECONDS
    )
    notes.check(again, "it recovers by itself", "it does not recover by itself")
    rows = {row.event_id.hex() for row in questions.events(deployment, user=person.name, limit=100)}
    notes.check(
        first.event_id.replace("-", "") in rows,
        "what was answered before is still in the record",
        "what was answered before is gone from the record",
    )
    notes.limit("a full disk is not made here")


ROW = Row(
    id="AU-02",
    title="What cannot be recorded is not answered",
    current="45 CFR 164.312(b)",
    nprm="proposed 45 CFR 164.312 (audit trail and system log controls)",
    proves="while the audit service is held still neither predictions nor control calls are "
    "answered; afterwards they are, and nothing that was answered is lost",
    not_proven="a full or broken disk",
    duty="have a way to work while the service is away (164.308(a)(7))",
    run=run,
)
