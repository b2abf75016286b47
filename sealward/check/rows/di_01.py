"""DI-01: what leaves as de-identified holds none of the 18 identifiers."""

from __future__ import annotations

from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row


def run(_deployment: Deployment, notes: Notes) -> None:
    """Not tried yet."""
    notes.cannot(
        "de-identification of HL7, FHIR, DICOM and free text comes with the edges for them, which "
        "are not part of this version"
    )


ROW = Row(
    id="DI-01",
    title="De-identified means without the 18 identifiers",
    current="45 CFR 164.514(b)(2)",
    nprm="45 CFR 164.514(b)(2) (not changed by 90 FR 898)",
    proves="nothing yet",
    not_proven="everything",
    duty="decide between Safe Harbor and expert determination, have somebody look at free text",
    run=run,
)
