"""EV-01: the safeguards are evaluated regularly, and it can be shown."""

from __future__ import annotations

import time

from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

YEAR = 366 * 86400 * 1_000_000_000


def run(deployment: Deployment, notes: Notes) -> None:
    """Look for the last report that the log vouched for."""
    found = questions.events(deployment, type="check.report", outcome="ok", limit=1)
    last = deployment.settings.last
    if last is not None:
        about = questions.record(deployment, last.event_id)
        notes.check(
            about.get("sealward.event.type") == "check.report",
            f"the report of {last.ended} is in the log, and this one is compared with it",
            "the report that was given is not in this deployment's log",
        )
    if not found:
        notes.cannot("this is the first report: there is none before it")
    age = time.time_ns() - found[0].time_unix_nano
    days = age // (86400 * 1_000_000_000)
    notes.check(
        age <= YEAR,
        f"the last check was {days} days ago, and its report is in the log",
        f"the last check was {days} days ago: at least one a year",
    )
    if last is None:
        notes.limit("the last report was not given: --diff LAST tells what changed")


ROW = Row(
    id="EV-01",
    title="The safeguards are evaluated, and the reports can be verified",
    current="45 CFR 164.308(a)(8)",
    nprm="proposed 45 CFR 164.308(a) (compliance audit every 12 months)",
    proves="an earlier check is in the log and not older than a year; with --diff, that the report "
    "given is of this deployment and what changed since",
    not_proven="the non-technical evaluation",
    duty="evaluate policies, people and premises too; act on what is red",
    run=run,
    writes=False,
    last=True,
)
