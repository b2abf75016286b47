"""DI-02: a code for a patient is not made from the patient's data."""

from __future__ import annotations

import csv
import hashlib
import io
import tempfile
from pathlib import Path

from sealward.api.gateway.v1 import deid_pb2
from sealward.check import questions
from sealward.check.deployment import Deployment, Person
from sealward.check.row import Notes, Row
from sealward.check.rows.di_01 import export

_DEID = f"{questions.GATEWAY}DeidService/"
_CODE_DIGITS = 16


def run(deployment: Deployment, notes: Notes) -> None:
    """Export the same patient four times: twice alone, in one project, in another."""
    person = deployment.person("clinician", fresh=True)
    patient = f"{deployment.settings.canary}-DI02"
    message = questions.prediction(questions.models(deployment)[0])
    reply = questions.infer(deployment, person, message, purpose="TREAT", patient=patient)
    if not reply.ok:
        notes.cannot(f"the call about the made-up patient is not answered: {reply.said}")
    pseudonym = str(questions.record(deployment, reply.event_id).get("sealward.patient", ""))
    run_id = deployment.settings.canary[-8:].lower()
    projects = [f"zzcheck-{run_id}-{letter}" for letter in "ab"]
    try:
        one, two = (_code(deployment, notes, person) for _ in range(2))
        mine, again = (_code(deployment, notes, person, projects[0]) for _ in range(2))
        other = _code(deployment, notes, person, projects[1])
        notes.check(
            len({one, two, mine, other}) == 4,
            "the same patient has another code in each export and each project",
            "the same patient has the same code in two exports",
        )
        notes.check(
            mine == again, "and the same one within a project", "and others within a project"
        )
        _not_derived(notes, {one, two, mine, other}, [patient, pseudonym, person.name])
        _led_back(deployment, notes, person, projects[0], mine)
    finally:
        for project in projects:
            drop = deid_pb2.DropProjectRequest(project=project)
            deployment.call("gateway", f"{_DEID}DropProject", drop.SerializeToString())


def _code(deployment: Deployment, notes: Notes, person: Person, project: str = "") -> str:
    """Export what somebody did; return the code of the one patient in it."""
    with tempfile.TemporaryDirectory(prefix="sealward-check-") as folder:
        file = Path(folder, "export")
        more = ("--project", project) if project else ()
        code, _ = deployment.sealward(*export("csv", file, person, *more))
        if code or not file.exists():
            notes.cannot(f"the export without identifiers ended with {code}")
        rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
        found = {row["patient"] for row in rows} - {""}
    if len(found) != 1:
        notes.cannot(f"one patient, and {len(found)} codes in the export")
    return found.pop()


def _not_derived(notes: Notes, codes: set[str], identifiers: list[str]) -> None:
    made = set()
    for text in identifiers:
        made.add(text[:_CODE_DIGITS])
        for name in ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b"):
            made.add(hashlib.new(name, text.encode()).hexdigest()[:_CODE_DIGITS])
    notes.check(
        not codes & made,
        "no code is a hash of reference, pseudonym or name",
        "a code is a hash of what it stands for",
    )


def _led_back(
    deployment: Deployment, notes: Notes, person: Person, project: str, code: str
) -> None:
    asked = deid_pb2.ReidentifyRequest(project=project, code=code).SerializeToString()
    reply = deployment.call("gateway", f"{_DEID}Reidentify", asked, who=person)
    notes.check(
        not reply.ok,
        "a clinician does not lead a code back",
        "a clinician leads a code back to the patient",
    )
    officer = deployment.person("privacy-officer")
    reply = deployment.call("gateway", f"{_DEID}Reidentify", asked, who=officer)
    notes.check(
        reply.ok and bool(reply.event_id),
        "a privacy officer does, and that is in the record",
        f"a privacy officer does not, or without a record: {reply.said}",
    )


ROW = Row(
    id="DI-02",
    title="Codes of de-identified patients are not derived from them",
    current="45 CFR 164.514(c)",
    nprm="45 CFR 164.514(c) (not changed by 90 FR 898)",
    proves="the same patient has another code in each export and project, none is a plain hash, "
    "and who may not does not lead one back",
    not_proven="that nobody guesses from what is left (164.514(b)(2)(ii))",
    duty="keep the table of codes apart from who gets the export, drop projects that are over",
    run=run,
)
