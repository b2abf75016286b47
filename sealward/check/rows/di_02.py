"""DI-02: a code for a patient is not made from the patient's data."""

from __future__ import annotations

from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row


def run(_deployment: Deployment, notes: Notes) -> None:
    """Not tried yet."""
    notes.cannot("the de-identified export is not tried by this version")


ROW = Row(
    id="DI-02",
    title="Codes of de-identified patients are not derived from them",
    current="45 CFR 164.514(c)",
    nprm="45 CFR 164.514(c) (not changed by 90 FR 898)",
    proves="nothing yet",
    not_proven="everything",
    duty="keep the table of codes apart from who gets the export",
    run=run,
)
