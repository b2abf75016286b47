"""`sealward audit hold`: what has to be kept whatever its age."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Annotated

import typer

from sealward.cli.audit.asking import filled
from sealward.cli.audit.logs import LONG_SECONDS, Tenant, log_admin
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.times import parse_time, show_nanos

app = typer.Typer(help="Place, release and list legal holds.", no_args_is_help=True)


@app.command()
def place(
    tenant: Tenant = "",
    log: Annotated[
        str | None,
        typer.Option("--log", metavar="ORIGIN", help="Only this log.", callback=filled),
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option("--patient", help="Only events of this patient.", callback=filled),
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="Only events of this actor.", callback=filled)
    ] = None,
    since: Annotated[str, typer.Option("--since", help="Only from then on.")] = "",
    until: Annotated[str, typer.Option("--until", help="Only before then.")] = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Keep everything of a tenant, or what the options name, from being purged."""
    from sealward.api.audit.v1.logs_pb2 import PlaceHoldRequest

    now = dt.datetime.now(dt.UTC)
    request = PlaceHoldRequest(
        tenant=tenant,
        origin=log or "",
        patient=patient or "",
        user=user or "",
        since_unix_nano=parse_time(since, now) if since else 0,
        until_unix_nano=parse_time(until, now) if until else 0,
    )
    with log_admin(directory, "placing the hold") as logs:
        hold_id = logs.PlaceHold(request, timeout=LONG_SECONDS).hold_id
    emit({"hold": hold_id}, as_json=as_json, text=f"hold {hold_id} is placed")


@app.command()
def release(
    hold: Annotated[str, typer.Argument(metavar="HOLD", help="Id of the hold.")],
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """End a hold."""
    from sealward.api.audit.v1.logs_pb2 import ReleaseHoldRequest

    with log_admin(directory, "releasing the hold") as logs:
        logs.ReleaseHold(ReleaseHoldRequest(hold_id=hold), timeout=LONG_SECONDS)
    emit({"hold": hold, "released": True}, as_json=as_json, text=f"hold {hold} is released")


@app.command("list")
def list_(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List the holds that stand."""
    from sealward.api.audit.v1.logs_pb2 import ListHoldsRequest

    with log_admin(directory, "listing the holds") as logs:
        holds = logs.ListHolds(ListHoldsRequest(), timeout=LONG_SECONDS).holds
    rows = [
        {
            "hold": hold.id,
            "tenant": hold.tenant,
            "log": hold.origin,
            "patient": hold.patient,
            "user": hold.user,
            "since": show_nanos(hold.since_unix_nano) if hold.since_unix_nano else "",
            "until": show_nanos(hold.until_unix_nano) if hold.until_unix_nano else "",
            "placed": show_nanos(hold.placed_unix_nano),
            "by": hold.actor,
            "event_id": str(uuid.UUID(bytes=hold.event_id)),
        }
        for hold in holds
    ]
    if as_json:
        emit({"holds": rows}, as_json=True)
        return
    names = ("hold", "tenant", "log", "patient", "user", "since", "until", "placed", "by")
    table(names, [[row[name] for name in names] for row in rows], empty="no holds")
