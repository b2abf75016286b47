"""`sealward audit accounting`: who received a patient's data (45 CFR 164.528), or who looked."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.audit.asking import (
    SECONDS,
    ReceiptsTo,
    Since,
    Tenant,
    Until,
    event_ids,
    nanos,
    reviewing,
    write_receipts,
)
from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import Suite
from sealward.cli.times import show_nanos

if TYPE_CHECKING:
    from sealward.api.audit.v1.review_pb2 import Disclosure, ReportDisclosuresResponse

_COLUMNS = ("first", "last", "count", "recipient", "what", "purpose", "event", "outcome", "note")


def accounting(
    patient: Annotated[str, typer.Option("--patient", help="Patient reference.")],
    since: Since = "",
    until: Until = "",
    access: Annotated[
        bool,
        typer.Option("--access", help="Everybody who looked, not the accounting alone."),
    ] = False,
    every: Annotated[
        bool, typer.Option("--every", help="A row for every event, also for repeated ones.")
    ] = False,
    for_patient: Annotated[
        bool,
        typer.Option("--for-patient", help="As the patient gets it: without what is suspended."),
    ] = False,
    suspend: Annotated[
        str,
        typer.Option(
            "--suspend", metavar="AGENCY", help="Suspend the accounting of disclosures to AGENCY."
        ),
    ] = "",
    suspend_until: Annotated[
        str, typer.Option("--suspend-until", help="Until then; `now` ends it.")
    ] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    receipts: ReceiptsTo = None,
    tenant: Tenant = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Show who received a patient's data: six years back, or the time asked for.

    Treatment, payment, operations and the patient's own requests are left out, as 45 CFR 164.528
    says; --access shows all. The asking is itself recorded.
    """
    from sealward.api.audit.v1 import review_pb2

    if suspend or suspend_until:
        _suspend(patient, suspend, suspend_until, directory, as_json=as_json)
        return
    with reviewing(directory, "asking for the disclosures") as review:
        answer = review.ReportDisclosures(
            review_pb2.ReportDisclosuresRequest(
                patient=patient,
                since_unix_nano=nanos(since),
                until_unix_nano=nanos(until),
                access=access,
                summarise=not every,
                for_patient=for_patient,
                tenant=tenant,
                receipts=receipts is not None,
            ),
            timeout=SECONDS,
        )
    proofs = 0
    if receipts is not None:
        for row in answer.disclosures:
            proofs += write_receipts(
                receipts, Suite.at(directory), row.events, row.receipts, answer.checkpoints
            )
    if as_json:
        emit(_as_json(answer, proofs), as_json=True)
    elif as_csv:
        line(_as_csv(answer).rstrip("\n"))
    else:
        _print(answer, access=access, for_patient=for_patient)


def _suspend(patient: str, agency: str, until: str, directory: Dir, *, as_json: bool) -> None:
    from sealward.api.audit.v1 import review_pb2

    if not agency or not until:
        raise usage("a suspension needs both", "--suspend AGENCY --suspend-until 2027-06-30")
    ends = 0 if until == "now" else nanos(until)
    with reviewing(directory, "suspending the accounting") as review:
        review.SuspendAccounting(
            review_pb2.SuspendAccountingRequest(
                patient=patient, agency=agency, until_unix_nano=ends
            ),
            timeout=SECONDS,
        )
    shown = show_nanos(ends) if ends else ""
    emit(
        {"agency": agency, "suspended_until": shown or None},
        as_json=as_json,
        text=f"{agency}: suspended until {shown}" if shown else f"{agency}: no longer suspended",
    )


def _row(row: Disclosure) -> dict[str, Any]:
    return {
        "first": show_nanos(row.first_unix_nano),
        "last": show_nanos(row.last_unix_nano),
        "count": row.count,
        "recipient": row.recipient,
        "recipient_kind": row.recipient_kind,
        "what": row.what,
        "purpose": row.purpose,
        "type": row.type,
        "outcome": row.outcome,
        "suspended": row.suspended,
    }


def _as_json(answer: ReportDisclosuresResponse, proofs: int) -> dict[str, Any]:
    return {
        "since": show_nanos(answer.since_unix_nano),
        "until": show_nanos(answer.until_unix_nano),
        "disclosures": [{**_row(r), "events": event_ids(r.events)} for r in answer.disclosures],
        "events": answer.events,
        "excluded": answer.excluded,
        "receipts": proofs,
    }


def _as_csv(answer: ReportDisclosuresResponse) -> str:
    from sealward.evidence.csv import safe

    out = io.StringIO()
    rows = [_row(row) for row in answer.disclosures]
    writer = csv.writer(out, lineterminator="\n")
    names = ("first", "last", "count", "recipient", "recipient_kind", "what", "purpose", "type",
             "outcome", "suspended")  # fmt: skip
    writer.writerow(names)
    writer.writerows([safe(str(row[name])) for name in names] for row in rows)
    return out.getvalue()


def _print(answer: ReportDisclosuresResponse, *, access: bool, for_patient: bool) -> None:
    table(
        _COLUMNS,
        [
            (
                show_nanos(row.first_unix_nano), show_nanos(row.last_unix_nano), row.count,
                row.recipient, row.what, row.purpose, row.type, row.outcome,
                "suspended" if row.suspended else "",
            )
            for row in answer.disclosures
        ],
        empty="nobody looked" if access else "no disclosure to account for",
    )  # fmt: skip
    between = f"{show_nanos(answer.since_unix_nano)} to {show_nanos(answer.until_unix_nano)}"
    if access or for_patient:
        line(between)
    else:
        line(
            f"{between}: {answer.events} events, of them {answer.excluded} for treatment, payment,"
            " operations or not disclosed"
        )
