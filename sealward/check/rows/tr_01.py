"""TR-01: traces, logs, metrics and errors hold ids only."""

from __future__ import annotations

from sealward.api.audit.v1 import audit_pb2
from sealward.check import questions
from sealward.check.deployment import SERVICES, Deployment, Person, Reply
from sealward.check.row import Notes, Row
from sealward.check.rows.ac_05 import forms, parts
from sealward.evidence.event import read_span

# Where the patient reference stands in clear inside of a sealed record, for who may know.
_SEALED_REFERENCE = "sealward.patient.reference"


def run(deployment: Deployment, notes: Notes) -> None:
    """Put a canary wherever a caller can; look at each span, log, metric and error of it."""
    person = deployment.person("clinician", fresh=True)
    canary = f"{deployment.settings.canary}TR01"
    replies = _carry(deployment, person, canary)
    wanted = forms(canary)
    leaked = [reply for reply in replies if _in(wanted, reply.details.encode())]
    notes.check(
        not leaked,
        f"{len(replies)} answers and errors do not repeat what was sent",
        f"{len(leaked)} errors repeat what was sent",
    )
    spans = _spans(deployment, person, wanted, notes)
    if spans < len(replies) // 2:
        notes.cannot(f"{len(replies)} calls, and {spans} records of them")
    for service in SERVICES:
        if _in(wanted, deployment.metrics(service)):
            notes.fault(f"the metrics of {service} repeat what was sent")
    notes.held(f"the metrics of {len(SERVICES)} services do not")
    if deployment.root is None:
        notes.limit("logs of the services are not on this machine")
        return
    files = [path for path in (deployment.root / "logs").rglob("*") if path.is_file()]
    for path in files:
        if any(_in(wanted, part) for part in parts(path, max(map(len, wanted)))):
            notes.fault(f"{path.name} repeats what was sent")
    notes.held(f"{len(files)} log files do not")


def _carry(deployment: Deployment, person: Person, canary: str) -> list[Reply]:
    model = questions.models(deployment)[0]
    plain = questions.prediction(model)
    named = questions.prediction(model)
    named.id = canary
    named.parameters[canary].string_param = canary
    tensor = questions.prediction(model)
    tensor.inputs[0].name = canary
    text = questions.prediction(model)
    text.inputs[0].datatype = "BYTES"
    text.inputs[0].ClearField("contents")
    text.inputs[0].contents.bytes_contents.append(canary.encode())
    other = questions.prediction(model)
    other.model_name = canary.lower()
    version = questions.prediction(model)
    version.model_version = canary

    def infer(message: object = plain, **options: str) -> Reply:
        return questions.infer(deployment, person, message, **options)  # type: ignore[arg-type]

    def sent(key: str, value: str) -> Reply:
        body = plain.SerializeToString()
        return deployment.call(
            "gateway", questions.INFER, body, who=person, metadata=[(key, value)]
        )

    return [
        infer(named, purpose="TREAT", patient=canary),
        *(infer(m, purpose="TREAT", patient=canary) for m in (tensor, text, other, version)),
        infer(purpose=canary),
        sent("sealward-seq", canary),
        sent("sealward-unknown", canary),
        sent("x-note", canary),
        deployment.call("gateway", questions.INFER, canary.encode(), who=person),
        deployment.call("gateway", f"/{canary}/{canary}", who=person),
        deployment.login(person, password=f"{canary} wrong"),
    ]


def _spans(deployment: Deployment, person: Person, wanted: list[bytes], notes: Notes) -> int:
    count = 0
    for row in questions.events(deployment, user=person.name, limit=100):
        reply = questions.asked(
            deployment, "audit", f"{questions.AUDIT}GetEvent",
            audit_pb2.GetEventRequest(event_id=row.event_id),
        )  # fmt: skip
        span = read_span(audit_pb2.GetEventResponse.FromString(reply.body).span)
        told = {k: v for k, v in span.attributes.items() if k != _SEALED_REFERENCE}
        count += 1
        if _in(wanted, f"{span.name} {told}".encode()):
            notes.fault(f"a record of type {row.type} repeats what was sent")
    notes.held(f"{count} records, opened, hold it nowhere but in the sealed patient reference")
    return count


def _in(wanted: list[bytes], data: bytes) -> bool:
    lower = data.lower()
    return any(form in lower for form in wanted)


ROW = Row(
    id="TR-01",
    title="Traces, logs, metrics and errors hold no patient data",
    current="45 CFR 164.312(a)(1), 164.502(b)",
    nprm="proposed 45 CFR 164.312(a)(1)",
    proves="text put into every place that a caller can fill is in no error, no opened record (but "
    "the sealed patient reference), no log and no metric",
    not_proven="traces that callers make themselves, core dumps of other programs",
    duty="treat what callers trace and log as patient data",
    run=run,
)
