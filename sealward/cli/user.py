"""`sealward user`: people and their client folders."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.passwords import read_password
from sealward.cli.suite import Suite

app = typer.Typer(help="Add, disable and list users.", no_args_is_help=True)


class Role(StrEnum):
    """The shipped roles."""

    CLINICIAN = "clinician"
    SERVICE = "service"
    OPERATOR = "operator"
    MODEL_ADMIN = "model-admin"
    SECURITY_ADMIN = "security-admin"
    PRIVACY_OFFICER = "privacy-officer"
    BREAK_GLASS = "break-glass"


Name = Annotated[str, typer.Argument(metavar="NAME", help="User name.")]


@app.command()
def add(
    name: Name,
    role: Annotated[list[Role], typer.Option("--role", help="Role; may be given again.")],
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="File with the password; else asked.")
    ] = None,
    one_time: Annotated[
        bool, typer.Option("--one-time", help="The password is for one use.")
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Add a user and fill `clients/NAME` with a certificate and what a client needs."""
    suite = Suite.at(directory)
    password = read_password(password_file, f"password of {name}", twice=True)
    user_id, folder = add_user(suite, name, [str(r) for r in role], password, one_time=one_time)
    emit(
        {"user": name, "user_id": user_id, "roles": [str(r) for r in role], "client": str(folder)},
        as_json=as_json,
        text=f"added {name}; client folder {folder}",
    )


def add_user(
    suite: Suite, name: str, roles: list[str], password: str, *, one_time: bool = False
) -> tuple[str, Path]:
    """Create a user and the client folder; return the user's id and the folder."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.certificates import issue_client
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("adding the user"), Admin(suite).channel("gateway") as channel:
        stub = UserServiceStub(channel)
        answer = stub.CreateUser(
            gw.CreateUserRequest(user=name, roles=roles, password=password, one_time=one_time),
            timeout=CALL_SECONDS,
        )
        issue_client(suite, stub, name)
    return str(answer.user_id), suite.clients / name


@app.command()
def disable(name: Name, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Stop a user from logging in and end their sessions, grants and certificates."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("disabling the user"), Admin(Suite.at(directory)).channel("gateway") as channel:
        answer = UserServiceStub(channel).DisableUser(
            gw.DisableUserRequest(user=name), timeout=CALL_SECONDS
        )
    certificates = (
        "certificates are revoked as soon as the keys service answers"
        if answer.certificates_pending
        else f"certificates revoked: {answer.certificates}"
    )
    emit(
        {
            "user": name,
            "revoked": answer.revoked,
            "grants": answer.grants,
            "certificates": answer.certificates,
            "certificates_pending": answer.certificates_pending,
        },
        as_json=as_json,
        text=f"disabled {name}; sessions ended: {answer.revoked}; grants ended: {answer.grants};"
        f" {certificates}",
    )


@app.command("set-roles")
def set_roles(
    name: Name,
    role: Annotated[list[Role], typer.Option("--role", help="Role; may be given again.")],
    version: Annotated[
        int,
        typer.Option("--version", help="Of `user list --json`: refuse when another change came."),
    ] = 0,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Give a user other roles; their sessions end at once."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    roles = [str(r) for r in role]
    with calling("changing roles"), Admin(Suite.at(directory)).channel("gateway") as channel:
        stub = UserServiceStub(channel)
        if not version:
            users = stub.ListUsers(gw.ListUsersRequest(), timeout=CALL_SECONDS).users
            version = next((int(u.version) for u in users if u.user == name), 0)
        answer = stub.SetRoles(
            gw.SetRolesRequest(user=name, roles=roles, version=version), timeout=CALL_SECONDS
        )
    emit(
        {"user": name, "roles": roles, "version": answer.version, "revoked": answer.revoked},
        as_json=as_json,
        text=f"{name} is now {', '.join(roles)}; sessions ended: {answer.revoked}",
    )


@app.command("reset-password")
def reset_password(
    name: Name,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="File with the password; else asked.")
    ] = None,
    one_time: Annotated[
        bool, typer.Option("--one-time", help="The password is for one use.")
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Give a user another password; their sessions end at once."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    password = read_password(password_file, f"password of {name}", twice=True)
    with calling("resetting"), Admin(Suite.at(directory)).channel("gateway") as channel:
        answer = UserServiceStub(channel).ResetPassword(
            gw.ResetPasswordRequest(user=name, password=password, one_time=one_time),
            timeout=CALL_SECONDS,
        )
    emit(
        {"user": name, "revoked": answer.revoked},
        as_json=as_json,
        text=f"{name} has another password; sessions ended: {answer.revoked}",
    )


@app.command()
def unlock(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="User name.")] = "",
    source: Annotated[
        str, typer.Option("--source", metavar="ADDRESS", help="An address instead of a user.")
    ] = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Take a lock after failed logins away."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    if bool(name) == bool(source):
        raise usage("name one user or one --source")
    with calling("unlocking"), Admin(Suite.at(directory)).channel("gateway") as channel:
        answer = UserServiceStub(channel).UnlockUser(
            gw.UnlockUserRequest(user=name, source=source), timeout=CALL_SECONDS
        )
    what = name or source
    emit(
        {"user": name, "source": source, "unlocked": answer.unlocked},
        as_json=as_json,
        text=f"{what} is unlocked" if answer.unlocked else f"nothing was counted against {what}",
    )


@app.command("list")
def list_(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List users, without secrets."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    with calling("listing users"), Admin(Suite.at(directory)).channel("gateway") as channel:
        found = UserServiceStub(channel).ListUsers(gw.ListUsersRequest(), timeout=CALL_SECONDS)
    users = found.users
    rows = [
        {
            "user": u.user,
            "user_id": u.user_id,
            "roles": list(u.roles),
            "disabled": u.disabled,
            "created": u.created,
            "version": u.version,
            "locked_until": u.locked_until,
        }
        for u in users
    ]
    if as_json:
        sources = [
            {"source": one.source, "locked_until": one.locked_until} for one in found.locked_sources
        ]
        emit({"users": rows, "locked_sources": sources}, as_json=True)
        return
    table(
        ["user", "roles", "state", "created"],
        [
            [
                u.user,
                ", ".join(u.roles),
                "disabled" if u.disabled else "locked" if u.locked_until else "ok",
                dt.datetime.fromtimestamp(u.created, dt.UTC).isoformat(timespec="seconds"),
            ]
            for u in users
        ],
        empty="no users",
    )
    for one in found.locked_sources:
        until = dt.datetime.fromtimestamp(one.locked_until, dt.UTC).isoformat(timespec="seconds")
        line(f"nobody logs in from {one.source} until {until}", err=True)
