"""The accounting of disclosures (45 CFR 164.528) and the report of every access.

The accounting leaves out what was for treatment, payment or health care operations
(164.528(a)(1)(i)) and what the patient asked for (a)(1)(ii). Purposes are HL7's PurposeOfUse codes.
A code that is not clearly one of these counts as a disclosure, and so does an event without any:
the report may say too much, never too little. Codes below HL7's HOPERAT that HIPAA does account for
are not in the list: donation (164.512(h)), fraud and government oversight (164.512(d)), decedents
(164.512(g)), legal proceedings (164.512(e)), military command (164.512(k)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.audit.reports.found import Found

TREATMENT = frozenset({"TREAT", "ETREAT", "BTG", "ERTREAT", "COC", "CAREMGT"})
PAYMENT = frozenset(
    {
        "HPAYMT", "CLMATTCH", "COVAUTH", "COVERAGE", "ELIGDTRM", "ELIGVER", "ENROLLM", "REMITADV",
    }
)  # fmt: skip
OPERATIONS = frozenset(
    {
        "HOPERAT", "HACCRED", "HCOMPL", "HOUTCOMS", "HPRGRP", "HQUALIMP", "HSYSADMIN", "LABELING",
        "METAMGT", "MEMADMIN", "PATADMIN", "PATSFTY", "PERFMSR", "RECORDMGT", "SYSDEV", "HTEST",
        "TRAIN",
    }
)  # fmt: skip
OWN_REQUEST = frozenset({"PATRQT"})
NOT_ACCOUNTED = TREATMENT | PAYMENT | OPERATIONS | OWN_REQUEST

_EXPORT = "audit.export"
# By themselves they give nothing to anybody outside; see sealward/evidence/purposes.py.
_INSIDE = frozenset({"session.break-glass", "deid.reidentify"})
_MOST_EVENTS = 100
SUSPENSION = "audit.suspend"


@dataclass(slots=True)
class Disclosure:
    """One disclosure, or several of one kind."""

    recipient: str
    recipient_kind: str
    what: str
    purpose: str
    type: str
    outcome: str
    suspended: bool
    first: int
    last: int
    count: int = 0
    events: list[Found] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Count one more; of more than 100 events the first ones and the last are kept."""
        self.count += 1
        self.first = min(self.first, found.row.time)
        self.last = max(self.last, found.row.time)
        if len(self.events) < _MOST_EVENTS:
            self.events.append(found)
        else:
            self.events[-1] = found


@dataclass(frozen=True, slots=True)
class Report:
    """The rows, the number of the patient's events, and how many of them were left out."""

    disclosures: list[Disclosure]
    events: int
    excluded: int


def is_disclosure(found: Found) -> bool:
    """Tell whether an event belongs into the accounting.

    Reading the audit is an operation of its own (auditing, 164.501); handing events out of the
    suite is not. Breaking the glass hands nothing out: each call under it has a row of its own.
    """
    row = found.row
    if row.outcome != "ok" or row.type in _INSIDE:
        return False
    if row.type.startswith("audit."):
        return row.type == _EXPORT
    return row.purpose not in NOT_ACCOUNTED


def suspensions(records: Iterable[Found]) -> dict[str, int]:
    """Return, from the records of suspensions, the moment until which each agency's lasts.

    The target of a record is `AGENCY/NANOSECONDS`; the newest of an agency counts.
    """
    found: dict[str, tuple[int, int]] = {}
    for record in records:
        agency, _, until = record.row.target.rpartition("/")
        if record.row.type == SUSPENSION and record.row.outcome == "ok" and until.isdecimal():
            newest = found.get(agency, (0, 0))
            found[agency] = max(newest, (record.row.time, int(until)))
    return {agency: until for agency, (_, until) in found.items()}


def report(
    events: Sequence[Found],
    *,
    access: bool,
    summarise: bool,
    for_patient: bool,
    suspended_until: Mapping[str, int],
    now: int,
) -> Report:
    """Return the report over one patient's events, which come oldest first."""
    rows: dict[object, Disclosure] = {}
    excluded = 0
    for number, found in enumerate(events):
        if not access and not is_disclosure(found):
            excluded += 1
            continue
        row = found.row
        recipient = row.organization or row.actor
        suspended = suspended_until.get(recipient, 0) > now
        if suspended and for_patient:
            continue
        kind = "organization" if row.organization else row.actor_kind
        what = " · ".join(part for part in (row.data_category, row.model) if part)
        group = (recipient, kind, what, row.purpose, row.type, row.outcome)
        key: object = group if summarise else number
        entry = rows.get(key)
        if entry is None:
            entry = rows[key] = Disclosure(*group, suspended, row.time, row.time)
        entry.add(found)
    return Report(sorted(rows.values(), key=lambda d: d.first), len(events), excluded)
