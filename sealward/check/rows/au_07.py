"""AU-07: who asks for an accounting of disclosures gets a right one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sealward.api.audit.v1 import review_pb2
from sealward.api.gateway.v1 import access_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment, Person
from sealward.check.row import Notes, Row

_DISCLOSURES, _TREATMENTS = 3, 5
_RESEARCH = "HRESCH"
_ACCESS = f"{questions.GATEWAY}AccessService/"
_REPORT = f"{questions.REVIEW}ReportDisclosures"


def run(deployment: Deployment, notes: Notes) -> None:
    """Three disclosures for research and five uses for treatment of one made-up patient."""
    person = deployment.person("clinician")
    model = questions.models(deployment)[0]
    message = questions.prediction(model)
    patient = f"{deployment.settings.canary}-AU07"
    with _granted(deployment, notes, person, model.name):
        for purpose, times in ((_RESEARCH, _DISCLOSURES), ("TREAT", _TREATMENTS)):
            for _ in range(times):
                reply = questions.infer(
                    deployment, person, message, purpose=purpose, patient=patient
                )
                if not reply.ok:
                    notes.cannot(f"a prediction for {purpose} is not answered: {reply.said}")
    request = review_pb2.ReportDisclosuresRequest(patient=patient)
    reply = questions.asked(deployment, "audit", _REPORT, request)
    report = review_pb2.ReportDisclosuresResponse.FromString(reply.body)
    count = sum(row.count for row in report.disclosures)
    notes.check(
        count == _DISCLOSURES and report.excluded >= _TREATMENTS,
        f"{count} disclosures are listed, {report.excluded} uses for treatment are counted and not",
        f"{_DISCLOSURES} disclosures were made, {count} are listed",
    )
    whole = all(row.recipient and row.what and row.purpose for row in report.disclosures)
    notes.check(
        whole and bool(report.disclosures),
        "each has its date, recipient, what and why",
        "a disclosure lacks its recipient, what or why",
    )
    six_years = 6 * 365 * 86400 * 1_000_000_000
    notes.check(
        report.until_unix_nano - report.since_unix_nano >= six_years,
        "the report reaches back six years",
        "the report does not reach back six years",
    )
    other = review_pb2.ReportDisclosuresRequest(patient=f"{patient}-nobody")
    reply = questions.asked(deployment, "audit", _REPORT, other)
    notes.check(
        not review_pb2.ReportDisclosuresResponse.FromString(reply.body).disclosures,
        "another patient has none of them",
        "another patient's report lists them",
    )
    reply = deployment.call("audit", _REPORT, request.SerializeToString(), who=person)
    notes.check(
        not reply.ok,
        "a clinician cannot ask for it",
        "a clinician can ask for anybody's accounting",
    )


@contextmanager
def _granted(deployment: Deployment, notes: Notes, person: Person, model: str) -> Iterator[None]:
    """Give access for research for the length of the block, as somebody else approves it."""
    asked = access_pb2.RequestAccessRequest(model=model, purpose=_RESEARCH, seconds=300)
    reply = deployment.call(
        "gateway", f"{_ACCESS}RequestAccess", asked.SerializeToString(), who=person
    )
    if not reply.ok:
        notes.cannot(f"access for research cannot be asked for: {reply.said}")
    access = access_pb2.RequestAccessResponse.FromString(reply.body).access.id
    approve = access_pb2.ApproveAccessRequest(id=access)
    reply = deployment.call("gateway", f"{_ACCESS}ApproveAccess", approve.SerializeToString())
    if not reply.ok:
        notes.cannot(f"access for research is not approved: {reply.said}")
    try:
        yield
    finally:
        revoke = access_pb2.RevokeAccessRequest(id=access)
        deployment.call("gateway", f"{_ACCESS}RevokeAccess", revoke.SerializeToString())


ROW = Row(
    id="AU-07",
    title="An accounting of disclosures is complete, and lists no treatment",
    current="45 CFR 164.528",
    nprm="45 CFR 164.528 (not changed by 90 FR 898)",
    proves="of a made-up patient with three disclosures and five uses for treatment, exactly the "
    "three are listed, with recipient, what and purpose, six years back",
    not_proven="disclosures by other ways: letters, telephone, other systems",
    duty="answer within 60 days, add the disclosures of other systems, verify who asks",
    run=run,
)
