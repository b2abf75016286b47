"""`sealward session`: who is logged in, and ending it."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite

app = typer.Typer(help="List and revoke sessions.", no_args_is_help=True)

UserOption = Annotated[str, typer.Option("--user", metavar="NAME", help="Of this user alone.")]


@app.command("list")
def list_(user: UserOption = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List the sessions, newest first."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import SessionServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("listing sessions"), Admin(Suite.at(directory)).channel("gateway") as channel:
        sessions = (
            SessionServiceStub(channel)
            .ListSessions(gw.ListSessionsRequest(user=user), timeout=CALL_SECONDS)
            .sessions
        )
    if as_json:
        rows = [
            {
                "session_id": s.session_id,
                "user": s.user,
                "roles": list(s.roles),
                "created": s.created,
                "expires": s.expires,
            }
            for s in sessions
        ]
        emit({"sessions": rows}, as_json=True)
        return
    table(
        ["session", "user", "roles", "created", "expires"],
        [
            [s.session_id, s.user, ", ".join(s.roles), _time(s.created), _time(s.expires)]
            for s in sessions
        ],
        empty="no sessions",
    )


@app.command()
def revoke(
    session: Annotated[str, typer.Argument(metavar="[SESSION]", help="Id of the session.")] = "",
    user: Annotated[
        str, typer.Option("--user", metavar="NAME", help="Every session of this user.")
    ] = "",
    everybody: Annotated[bool, typer.Option("--all", help="Every session of everybody.")] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """End one session, all of a user's, or all."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import SessionServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    if [bool(session), bool(user), everybody].count(True) != 1:
        raise usage("name one session, one --user, or --all")
    with calling("revoking"), Admin(Suite.at(directory)).channel("gateway") as channel:
        answer = SessionServiceStub(channel).RevokeSessions(
            gw.RevokeSessionsRequest(session_id=session, user=user, all=everybody),
            timeout=CALL_SECONDS,
        )
    emit({"revoked": answer.revoked}, as_json=as_json, text=_ended(answer.revoked, session or user))


def _ended(count: int, name: str) -> str:
    """Say how many; of none that somebody named, that a wrong name would read the same."""
    if count or not name:
        return f"sessions ended: {count}"
    return f"sessions ended: 0; none of {name} was open: compare with sealward session list"


def _time(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
