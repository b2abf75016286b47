"""`sealward identity`: who at the identity provider is which user."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.gateway.v1.oidc_pb2_grpc import OidcServiceStub

app = typer.Typer(help="People at the identity provider.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="User name.")]


@app.command()
def link(
    name: Name,
    subject: Annotated[str, typer.Option("--subject", help="`sub` of the person at the provider.")],
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Say which person at the provider a user is."""
    from sealward.api.gateway.v1 import oidc_pb2 as pb
    from sealward.cli.connect import CALL_SECONDS

    with _oidc(directory, acting, "linking") as (stub, who):
        made = stub.LinkIdentity(
            pb.LinkIdentityRequest(user=name, subject=subject),
            timeout=CALL_SECONDS,
            metadata=who.metadata,
        ).identity
    emit(
        {"user": made.user, "issuer": made.issuer, "subject": made.subject},
        as_json=as_json,
        text=f"{made.user} is {made.subject} at {made.issuer}",
    )


@app.command()
def unlink(name: Name, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Take that back and end the user's sessions."""
    from sealward.api.gateway.v1 import oidc_pb2 as pb
    from sealward.cli.connect import CALL_SECONDS

    with _oidc(directory, acting, "unlinking") as (stub, who):
        done = stub.UnlinkIdentity(
            pb.UnlinkIdentityRequest(user=name), timeout=CALL_SECONDS, metadata=who.metadata
        )
    emit(
        {"user": name, "revoked": done.revoked},
        as_json=as_json,
        text=f"unlinked; sessions ended: {done.revoked}",
    )


@app.command("list")
def list_(acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List who is who."""
    from sealward.api.gateway.v1 import oidc_pb2 as pb
    from sealward.cli.connect import CALL_SECONDS

    with _oidc(directory, acting, "listing identities") as (stub, who):
        found = stub.ListIdentities(
            pb.ListIdentitiesRequest(), timeout=CALL_SECONDS, metadata=who.metadata
        ).identities
    if as_json:
        rows = [
            {"user": i.user, "issuer": i.issuer, "subject": i.subject, "since": i.since}
            for i in found
        ]
        emit({"identities": rows}, as_json=True)
        return
    table(
        ["user", "subject", "provider", "since"],
        [
            [
                i.user, i.subject, i.issuer,
                dt.datetime.fromtimestamp(i.since, dt.UTC).isoformat(timespec="seconds"),
            ]
            for i in found
        ],
        empty="nobody is linked",
    )  # fmt: skip


@contextmanager
def _oidc(directory: Path, acting: str, what: str) -> Iterator[tuple[OidcServiceStub, Acting]]:
    from sealward.api.gateway.v1.oidc_pb2_grpc import OidcServiceStub
    from sealward.cli.rpc import calling

    with calling(what), Acting(Suite.at(directory), acting) as who:
        yield OidcServiceStub(who.channel), who
