"""AU-08: reading the record is in the record."""

from __future__ import annotations

from sealward.api.audit.v1 import audit_pb2, review_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row


def run(deployment: Deployment, notes: Notes) -> None:
    """Ask in three ways and look for the records of these questions."""
    name = f"zzcheck-{deployment.settings.canary[-12:].lower()}"
    asked = questions.asked(
        deployment, "audit", f"{questions.AUDIT}QueryEvents",
        audit_pb2.QueryEventsRequest(user=name, limit=1),
    )  # fmt: skip
    shown = questions.events(deployment, limit=1)
    opened = questions.asked(
        deployment, "audit", f"{questions.AUDIT}GetEvent",
        audit_pb2.GetEventRequest(event_id=shown[0].event_id if shown else b""),
    )  # fmt: skip
    report = questions.asked(
        deployment, "audit", f"{questions.REVIEW}ListActivity",
        review_pb2.ListActivityRequest(user=name),
    )  # fmt: skip
    for what, wanted, target, reply in (
        ("a query", "audit.query", name, asked),
        ("opening an event", "audit.read", shown[0].event_id.hex() if shown else "", opened),
        ("a report", "audit.report", name, report),
    ):
        if not notes.check(
            bool(reply.event_id), f"{what} names its record", f"{what} left no record"
        ):
            continue
        about = questions.record(deployment, reply.event_id)
        notes.check(
            about.get("sealward.event.type") == wanted
            and about.get("sealward.target") == target
            and about.get("sealward.actor.kind") == "admin",
            f"{what} is {wanted}, with who asked and about whom",
            f"the record of {what} does not say who asked about whom",
        )


ROW = Row(
    id="AU-08",
    title="Reading the record is recorded",
    current="45 CFR 164.312(b)",
    nprm="proposed 45 CFR 164.312 (audit trail and system log controls)",
    proves="a query, an opened event and a report each leave an event that names who asked and "
    "about whom",
    not_proven="reading of copies that were exported",
    duty="decide who may read the record, and look at who did",
    run=run,
    writes=False,
)
