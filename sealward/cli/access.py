"""`sealward access`: access for a while, and breaking the glass."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.options import DEFAULT, Dir, Json, User
from sealward.cli.output import emit, line, table
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.gateway.v1 import access_pb2 as pb
    from sealward.api.gateway.v1.access_pb2_grpc import AccessServiceStub

app = typer.Typer(help="Access for a while, and breaking the glass.", no_args_is_help=True)

_CALL_SECONDS = 15.0
EMERGENCY_SESSION = "session.break-glass"
"""Name of the file in a client folder with the token of an emergency session."""

Id = Annotated[str, typer.Argument(metavar="ID", help="Id, as `list` shows it.")]
Ticket = Annotated[str, typer.Option("--ticket", help="Number of the ticket or case.")]


@app.command("request")
def request(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model.")],
    user: User,
    purpose: Annotated[str, typer.Option("--purpose", help="HL7 v3 PurposeOfUse.")],
    minutes: Annotated[int, typer.Option("--minutes", min=1, max=1440, help="For how long.")] = 60,
    ticket: Ticket = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Ask for access to a model for a purpose, for a while; somebody else approves it."""
    from sealward.api.gateway.v1 import access_pb2 as pb

    with _access(directory, user, "asking for access") as (stub, who):
        made = stub.RequestAccess(
            pb.RequestAccessRequest(
                model=model, purpose=purpose, seconds=minutes * 60, ticket=ticket
            ),
            timeout=_CALL_SECONDS,
            metadata=who.metadata,
        ).access
    _emit(made, as_json=as_json, text=f"asked; {made.id} waits for: sealward access approve")


@app.command("list")
def list_(
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help="requested, granted, denied, revoked or expired."),
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Of everybody.")] = False,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List requests and grants, newest first: one's own, or everybody's."""
    from sealward.api.gateway.v1 import access_pb2 as pb

    with _access(directory, acting, "listing access") as (stub, who):
        found = stub.ListAccess(
            pb.ListAccessRequest(states=state or (), everybody=everybody),
            timeout=_CALL_SECONDS,
            metadata=who.metadata,
        ).access
    if as_json:
        emit({"access": [_value(access) for access in found]}, as_json=True)
        return
    table(
        ["id", "user", "model", "purpose", "state", "until", "decided by", "ticket"],
        [
            [a.id, a.user, a.model, a.purpose, a.state, _time(a.expires), a.decided_by, a.ticket]
            for a in found
        ],
        empty="no requests and no grants",
    )


@app.command()
def approve(id_: Id, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Grant somebody else's request, from now on."""
    from sealward.api.gateway.v1 import access_pb2 as pb

    with _access(directory, acting, "approving access") as (stub, who):
        done = stub.ApproveAccess(
            pb.ApproveAccessRequest(id=id_), timeout=_CALL_SECONDS, metadata=who.metadata
        ).access
    _emit(done, as_json=as_json, text=f"granted to {done.user} until {_time(done.expires)}")


@app.command()
def deny(id_: Id, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Deny a request."""
    from sealward.api.gateway.v1 import access_pb2 as pb

    with _access(directory, acting, "denying access") as (stub, who):
        done = stub.DenyAccess(
            pb.DenyAccessRequest(id=id_), timeout=_CALL_SECONDS, metadata=who.metadata
        ).access
    _emit(done, as_json=as_json, text="denied")


@app.command()
def revoke(id_: Id, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """End a grant before its time."""
    from sealward.api.gateway.v1 import access_pb2 as pb

    with _access(directory, acting, "revoking access") as (stub, who):
        done = stub.RevokeAccess(
            pb.RevokeAccessRequest(id=id_), timeout=_CALL_SECONDS, metadata=who.metadata
        ).access
    _emit(done, as_json=as_json, text="revoked")


@app.command("break-glass")
def break_glass(
    user: User,
    patient: Annotated[
        str, typer.Option("--patient", help="Patient; the session is for this one.")
    ],
    reason: Annotated[
        str,
        typer.Option(
            "--reason",
            help="life-threat, unconscious, no-approver, system-outage, disaster or other.",
        ),
    ],
    ticket: Ticket = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Open emergency access to one patient for a short time. It is alarmed at once and reviewed."""
    from sealward.api.gateway.v1 import access_pb2 as pb
    from sealward.cli.connect import user_folder
    from sealward.cli.suite import write_private

    suite = Suite.at(directory)
    with _access(directory, user, "breaking the glass") as (stub, who):
        answer = stub.BreakGlass(
            pb.BreakGlassRequest(reason=reason, patient=patient, ticket=ticket),
            timeout=_CALL_SECONDS,
            metadata=who.metadata,
        )
    file = user_folder(suite, user) / EMERGENCY_SESSION
    write_private(file, answer.token.encode("ascii"))
    emit(
        {
            "token": answer.token, "expires": answer.expires, "session_id": answer.session_id,
            "file": str(file),
        },
        as_json=as_json,
        text=f"emergency access until {_time(answer.expires)}; it is on record and will be reviewed"
        f"\n  sealward infer MODEL --input FILE --user {user} --patient REFERENCE --break-glass",
    )  # fmt: skip


@app.command("review")
def review(
    as_of: Annotated[
        str, typer.Option("--as-of", help="Under the policy of then: 30d, 2026-05-01, ISO time.")
    ] = "",
    user: Annotated[str, typer.Option("--of", metavar="NAME", help="Only of this one.")] = "",
    dormant_days: Annotated[
        int, typer.Option("--dormant-days", min=1, help="Who made no call for so long.")
    ] = 90,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row for each right.")] = False,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List who may call what, by which rule, and when they last did (164.308(a)(4)(ii)(C))."""
    from sealward.cli.accessreview import ask, csv_text, show, value

    with _acting(directory, acting, "reviewing access") as who:
        found = ask(who, as_of=as_of, user=user, dormant_days=dormant_days)
    if as_json:
        emit(value(found), as_json=True)
    elif as_csv:
        line(csv_text(found).rstrip("\n"))
    else:
        show(found)


@contextmanager
def _acting(directory: Path, acting: str, what: str) -> Iterator[Acting]:
    from sealward.cli.rpc import calling

    with calling(what), Acting(Suite.at(directory), acting) as who:
        yield who


@contextmanager
def _access(directory: Path, acting: str, what: str) -> Iterator[tuple[AccessServiceStub, Acting]]:
    from sealward.api.gateway.v1.access_pb2_grpc import AccessServiceStub
    from sealward.cli.rpc import calling

    with calling(what), Acting(Suite.at(directory), acting) as who:
        yield AccessServiceStub(who.channel), who


def _emit(access: pb.Access, *, as_json: bool, text: str) -> None:
    emit(_value(access), as_json=as_json, text=text)


def _value(access: pb.Access) -> dict[str, Any]:
    names = [field.name for field in access.DESCRIPTOR.fields]
    return {name: getattr(access, name) for name in names}


def _time(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
