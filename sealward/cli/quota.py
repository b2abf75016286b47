"""`sealward quota`: how much of which quota is used. Quotas themselves stand in the policies."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite

app = typer.Typer(help="Quotas that policies set, and their use.", no_args_is_help=True)


@app.callback()
def _noun() -> None:
    """Quotas that policies set, and their use."""


@app.command()
def show(
    user: Annotated[str, typer.Option("--user", help="The quotas of this user.")] = "",
    everybody: Annotated[
        bool, typer.Option("--all", help="All that calls of the running gateway have counted.")
    ] = False,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Show quotas and how much of them is used; without options the caller's own."""
    from sealward.api.gateway.v1 import quota_pb2 as pb
    from sealward.api.gateway.v1.quota_pb2_grpc import QuotaServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling

    if user and everybody:
        raise usage("--user names one, --all shows everybody's")
    with calling("reading quotas"), Acting(Suite.at(directory), acting) as who:
        found = (
            QuotaServiceStub(who.channel)
            .ListQuotas(
                pb.ListQuotasRequest(user=user, everybody=everybody),
                timeout=CALL_SECONDS,
                metadata=who.metadata,
            )
            .quotas
        )
    if as_json:
        rows = [
            {
                "policy": q.rule, "kind": q.kind, "amount": q.amount, "seconds": q.seconds,
                "shared": q.shared, "user": q.user, "used": q.used, "resets": q.resets,
            }
            for q in found
        ]  # fmt: skip
        emit({"quotas": rows}, as_json=True)
        return
    periods = {0: "at a time", 60: "a minute", 3600: "an hour", 86400: "a day"}
    table(
        ["policy", "user", "quota", "used", "again at"],
        [
            [q.rule, q.user or "all", f"{q.amount} {q.kind} {periods[q.seconds]}", q.used,
             _time(q.resets)]
            for q in found
        ],
        empty="no quotas",
    )  # fmt: skip


def _time(seconds: int) -> str:
    if not seconds:
        return ""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
