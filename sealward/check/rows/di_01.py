"""DI-01: what leaves as de-identified holds none of the 18 identifiers."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from sealward.check import questions
from sealward.check.deployment import Deployment, Person
from sealward.check.row import Notes, Row
from sealward.check.rows.ac_05 import forms

# A date is more than a year: 2026-05-01, 20260501, 05/01/2026; and a time of day.
_DATE = re.compile(rb"(19|20)\d\d-\d\d|\b(19|20)\d\d[01]\d[0-3]\d\b|\d\d/\d\d/\d{4}|\d\d:\d\d:\d\d")
_ADDRESS = re.compile(rb"\b\d{1,3}(\.\d{1,3}){3}\b|https?://|[\w.]+@[\w.]+\.\w")
_FORMS = ("csv", "fhir")
# One of each class that can stand in a reference: names, dates, numbers, addresses.
_REFERENCE = "{canary}|Doe^Jane|1931-02-03|555-0134|jane@example.org|078-05-1120"


def run(deployment: Deployment, notes: Notes) -> None:
    """Name a made-up patient in every way, export what happened, look for any of it."""
    person = deployment.person("clinician", fresh=True)
    patient = _REFERENCE.format(canary=deployment.settings.canary)
    message = questions.prediction(questions.models(deployment)[0])
    reply = questions.infer(deployment, person, message, purpose="TREAT", patient=patient)
    if not reply.ok:
        notes.cannot(f"the call about the made-up patient is not answered: {reply.said}")
    pseudonym = str(questions.record(deployment, reply.event_id).get("sealward.patient", ""))
    with tempfile.TemporaryDirectory(prefix="sealward-check-") as folder:
        for form in _FORMS:
            file = Path(folder, form)
            code, _ = deployment.sealward(*export(form, file, person))
            if code or not file.exists():
                notes.cannot(f"the export without identifiers as {form} ended with {code}")
            _look(notes, form, file.read_bytes(), person, [patient, pseudonym, reply.event_id])
        code, _ = deployment.sealward(
            "audit", "export", "--deidentified", "--format", "csv", "--patient", patient,
            "-o", str(Path(folder, "one")),
        )  # fmt: skip
        notes.check(
            code == 2,
            "an export about one patient is not taken for de-identified",
            "an export about one patient is made as de-identified",
        )
    notes.cannot(
        "exports of the record hold none of it; HL7, FHIR resources, DICOM and free text come with "
        "the edges for them, which are not part of this version"
    )


def export(form: str, file: Path, person: Person, *more: str) -> list[str]:
    """Return the arguments of an export of what one person did, without identifiers."""
    return [
        "audit", "export", "--deidentified", "--format", form, "--user", person.name,
        "-o", str(file), *more,
    ]  # fmt: skip


def _look(notes: Notes, form: str, data: bytes, person: Person, about: list[str]) -> None:
    wanted = {
        "the patient": about[0], "the patient's pseudonym": about[1], "the event": about[2],
        "the user's name": person.name, "the user's id": person.user_id,
        "the session": person.session_id,
    }  # fmt: skip
    lower = data.lower()
    found = [what for what, text in wanted.items() if text and any(f in lower for f in forms(text))]
    notes.check(
        not found and bool(data),
        f"{form}: no name, no number, no pseudonym of whom it is about",
        f"{form}: it holds {', '.join(found) or 'nothing'}",
    )
    notes.check(
        not _DATE.search(data), f"{form}: of dates the year alone", f"{form}: it holds a date"
    )
    # The systems of FHIR codes are addresses of nobody.
    plain = data.replace(b"http://terminology.hl7.org", b"").replace(b"http://hl7.org", b"")
    notes.check(not _ADDRESS.search(plain), f"{form}: no address", f"{form}: it holds an address")


ROW = Row(
    id="DI-01",
    title="De-identified means without the 18 identifiers",
    current="45 CFR 164.514(b)(2)",
    nprm="45 CFR 164.514(b)(2) (not changed by 90 FR 898)",
    proves="of a made-up patient with a name, dates, numbers and addresses, nothing is in the "
    "export of the record; an export about one patient is refused",
    not_proven="HL7, FHIR resources, DICOM and free text: the row is never green before these are "
    "tried",
    duty="decide between Safe Harbor and expert determination, have somebody look at free text",
    run=run,
)
