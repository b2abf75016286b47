"""`sealward audit patient`: a patient's references in the log, destroyed alone."""

from __future__ import annotations

from typing import Annotated

import typer

from sealward.cli.acting import As
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit
from sealward.cli.suite import Suite

app = typer.Typer(help="A patient's references in the log.", no_args_is_help=True)

_CALL_SECONDS = 120.0


@app.callback()
def _patient() -> None:
    """One patient's references: destroyed alone, by two people."""


@app.command()
def destroy(
    patient: Annotated[str, typer.Option("--patient", metavar="REF", help="Patient reference.")],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; it names no patient.")
    ],
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="NAME", help="Whose logs.")
    ] = "default",
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Ask that a patient's references be made unreadable; another person has to approve.

    Entries, receipts and proofs stay; nobody can tell any more whom they are about. What becomes of
    it: sealward keys destroy approve|cancel|list|show.
    """
    from sealward.api.audit.v1 import destruction_pb2 as pb
    from sealward.api.audit.v1.destruction_pb2_grpc import DestructionServiceStub
    from sealward.cli.connect import Admin
    from sealward.cli.keydestruction import ask, asked_text, value_of
    from sealward.cli.rpc import calling

    suite = Suite.at(directory)
    with calling("naming the patient"), Admin(suite).channel("audit") as channel:
        named = DestructionServiceStub(channel).NamePatient(
            pb.NamePatientRequest(tenant=tenant, patient=patient), timeout=_CALL_SECONDS
        )
    made = ask(suite, acting, named.tenant, "audit-patient", named.resource, reason)
    older = (
        f"\n  {named.older} events are from before patients had keys of their own: readable until"
        " their log is purged"
        if named.older
        else ""
    )
    emit(
        {**value_of(made), "events": named.sealed, "events_not_covered": named.older},
        as_json=as_json,
        text=f"{asked_text(made)}\n  {named.sealed} events name the patient{older}",
    )
