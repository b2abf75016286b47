"""`sealward login` and `sealward logout`."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Annotated

import typer

from sealward.cli.errors import CliError, usage
from sealward.cli.options import DEFAULT, Dir, Json, User
from sealward.cli.output import emit
from sealward.cli.passwords import read_password
from sealward.cli.suite import Suite


def login(
    user: User,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="File with the password; else asked.")
    ] = None,
    new_password_file: Annotated[
        Path | None,
        typer.Option(
            "--new-password-file",
            help="File with the password to set; required after a one-time one.",
        ),
    ] = None,
    code: Annotated[
        str, typer.Option("--code", help="One-time password or recovery code; else asked.")
    ] = "",
    oidc: Annotated[
        bool, typer.Option("--oidc", help="At the identity provider, in a browser.")
    ] = False,
    browser: Annotated[
        bool, typer.Option(help="With --oidc: open a browser, or print where to go.")
    ] = True,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Log a user in; the token is kept in `clients/NAME/session`."""
    suite = Suite.at(directory)
    if oidc:
        from sealward.cli.oidc import login_at_provider

        if password_file or new_password_file:
            raise usage("with --oidc the password is the provider's business")
        _said(user, *login_at_provider(suite, user, code, browser=browser), as_json=as_json)
        return
    password = read_password(password_file, f"password of {user}")
    new = read_password(new_password_file, "new password") if new_password_file else ""
    try:
        token, expires = start_session(suite, user, password, new, code)
    except CliError as error:
        if error.details.get("reason") != "SECOND_FACTOR_REQUIRED" or not sys.stdin.isatty():
            raise
        asked: str = typer.prompt("code", err=True)
        token, expires = start_session(suite, user, password, new, asked)
    _said(user, token, expires, as_json=as_json)


def _said(user: str, token: str, expires: int, *, as_json: bool) -> None:
    until = dt.datetime.fromtimestamp(expires, dt.UTC).isoformat(timespec="seconds")
    emit(
        {"token": token, "expires": expires},
        as_json=as_json,
        text=f"{user} is logged in until {until}",
    )


def logout(user: User, directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """End a user's session."""
    import grpc

    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import SessionServiceStub
    from sealward.cli.connect import CALL_SECONDS, user_channel, user_folder
    from sealward.cli.rpc import calling, error_info

    suite = Suite.at(directory)
    session = user_folder(suite, user) / "session"
    if not session.exists():
        emit({"ended": False}, as_json=as_json, text=f"{user} is not logged in")
        return
    metadata = (("authorization", f"Bearer {session.read_text(encoding='ascii').strip()}"),)
    with calling("logging out"), user_channel(suite, user) as channel:
        try:
            SessionServiceStub(channel).Logout(
                gw.LogoutRequest(), metadata=metadata, timeout=CALL_SECONDS
            )
        except grpc.RpcError as error:
            # A session that is over already is what was asked for.
            if error_info(error)[0] not in ("SESSION_INVALID", "SESSION_EXPIRED"):
                raise
    session.unlink(missing_ok=True)
    emit({"ended": True}, as_json=as_json, text=f"{user} is logged out")


def start_session(
    suite: Suite, user: str, password: str, new_password: str = "", code: str = ""
) -> tuple[str, int]:
    """Log in and keep the token in the client folder; return token and expiry (epoch seconds)."""
    from sealward.api.gateway.v1 import gateway_pb2 as gw
    from sealward.api.gateway.v1.gateway_pb2_grpc import SessionServiceStub
    from sealward.cli.bootstrap import FIRST_ADMIN
    from sealward.cli.connect import CALL_SECONDS, user_channel
    from sealward.cli.rpc import calling

    with calling("logging in"), user_channel(suite, user) as channel:
        answer = SessionServiceStub(channel).Login(
            gw.LoginRequest(user=user, password=password, new_password=new_password, code=code),
            timeout=CALL_SECONDS,
        )
    keep_session(suite, user, answer.token, answer.session_id)
    if user == FIRST_ADMIN and new_password:
        suite.admin_password_file.unlink(missing_ok=True)
    return answer.token, int(answer.expires)


def keep_session(suite: Suite, user: str, token: str, session_id: str) -> None:
    """Keep the token of a new session in the client folder, and begin its list of calls."""
    from sealward.cli.connect import user_folder
    from sealward.cli.suite import write_private
    from sealward.client.calls import CallList
    from sealward.client.errors import ClientError

    folder = user_folder(suite, user)
    write_private(folder / "session", token.encode("ascii"))
    try:
        CallList(folder, user).learn(token, session_id)
    except ClientError as error:
        raise CliError(str(error)) from None
