"""MN-01: no more is used and shown than the purpose needs."""

from __future__ import annotations

from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row


def run(_deployment: Deployment, notes: Notes) -> None:
    """Not tried yet."""
    notes.cannot("what a model is given and a role is shown is not tried by this version")


ROW = Row(
    id="MN-01",
    title="No more is used and shown than the purpose needs",
    current="45 CFR 164.502(b), 164.514(d)",
    nprm="45 CFR 164.502(b), 164.514(d) (not changed by 90 FR 898)",
    proves="nothing yet",
    not_proven="everything",
    duty="say which role needs which answer for which purpose",
    run=run,
)
