"""`sealward membership`: parameters of people's memberships in roles, which policies read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite

app = typer.Typer(help="Parameters of people in roles, which policies read.", no_args_is_help=True)


@app.command("set")
def set_(
    user: Annotated[str, typer.Argument(metavar="USER", help="User, or workload/NAME.")],
    role: Annotated[str, typer.Option("--role", help="Role that the user has.")],
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="All of them; none takes them away."),
    ] = None,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Give a membership these parameters and no others."""
    from sealward.api.gateway.v1 import membership_pb2 as pb
    from sealward.api.gateway.v1.membership_pb2_grpc import MembershipServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling

    given: dict[str, str] = {}
    for item in parameters or ():
        name, equals, value = item.partition("=")
        if not equals or name in given:
            raise usage("parameters are NAME=VALUE, each name once")
        given[name] = value
    with calling("setting parameters"), Acting(Suite.at(directory), acting) as who:
        made = (
            MembershipServiceStub(who.channel)
            .SetMembership(
                pb.SetMembershipRequest(
                    membership=pb.Membership(user=user, role=role, parameters=given)
                ),
                timeout=CALL_SECONDS,
                metadata=who.metadata,
            )
            .membership
        )
    emit(_shown(made), as_json=as_json, text=f"{user} as {role}: {_text(made) or 'no parameters'}")


@app.command("list")
def list_(
    user: Annotated[str, typer.Argument(metavar="[USER]", help="User name; else everybody.")] = "",
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List memberships with their parameters."""
    from sealward.api.gateway.v1 import membership_pb2 as pb
    from sealward.api.gateway.v1.membership_pb2_grpc import MembershipServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling

    with calling("listing memberships"), Acting(Suite.at(directory), acting) as who:
        found = (
            MembershipServiceStub(who.channel)
            .ListMemberships(
                pb.ListMembershipsRequest(user=user), timeout=CALL_SECONDS, metadata=who.metadata
            )
            .memberships
        )
    if as_json:
        emit({"memberships": [_shown(one) for one in found]}, as_json=True)
        return
    table(
        ["user", "role", "parameters"],
        [[one.user, one.role, _text(one)] for one in found],
        empty="no memberships",
    )


def _shown(membership: Any) -> dict[str, Any]:
    parameters = dict(sorted(membership.parameters.items()))
    return {"user": membership.user, "role": membership.role, "parameters": parameters}


def _text(membership: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(membership.parameters.items()))
