"""`sealward client`: programs that log in with a signed assertion, and their keys."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.acting import Acting, As
from sealward.cli.errors import unreadable, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.suite import Suite
from sealward.cli.user import Role

if TYPE_CHECKING:
    from sealward.api.gateway.v1.workload_pb2 import Client
    from sealward.api.gateway.v1.workload_pb2_grpc import WorkloadServiceStub

app = typer.Typer(help="Programs that log in by themselves.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Client.")]
Jwks = Annotated[
    Path, typer.Option("--jwks", metavar="FILE", help="Public keys of the client (JWKS).")
]


@app.command()
def key(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the private key goes, mode 0600.")
    ],
    jwks: Annotated[Path, typer.Option("--jwks", metavar="FILE", help="Where the public keys go.")],
    as_json: Json = False,
) -> None:
    """Make a key (EC P-384) for a client; run it where the client runs."""
    from sealward.client.assertion import new_key

    for file in (out, jwks):
        if file.exists():
            raise usage(f"{file} exists", "name a new file")
    private, public = new_key()
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as written:
        written.write(private)
    jwks.write_bytes(public)
    emit(
        {"key": str(out), "jwks": str(jwks)},
        as_json=as_json,
        text=f"private key: {out}\npublic keys: {jwks}\n"
        f"  then: sealward client register NAME --role service --jwks {jwks}",
    )


@app.command()
def register(
    name: Name,
    role: Annotated[list[Role], typer.Option("--role", help="Role; may be given again.")],
    jwks: Jwks,
    acting: As = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Register a client and fill `clients/NAME` with a certificate and what it needs."""
    from sealward.api.gateway.v1 import workload_pb2 as pb
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.certificates import issue_client
    from sealward.cli.connect import CALL_SECONDS, Admin

    keys = _read(jwks)
    suite = Suite.at(directory)
    with _clients(directory, acting, "registering the client") as (stub, who):
        made = stub.RegisterClient(
            pb.RegisterClientRequest(client=name, roles=[str(r) for r in role], jwks=keys),
            timeout=CALL_SECONDS,
            metadata=who.metadata,
        )
        with Admin(suite).channel("gateway") as channel:
            issue_client(suite, UserServiceStub(channel), name)
    folder = suite.clients / name
    emit(
        {**_json(made.client), "audience": made.audience, "folder": str(folder)},
        as_json=as_json,
        text=f"registered {name}; client folder {folder}\naudience of its assertions: "
        f"{made.audience}",
    )


@app.command("list")
def list_(acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """List clients."""
    found, audience = _listed(directory, acting, "")
    if as_json:
        emit({"clients": [_json(client) for client in found], "audience": audience}, as_json=True)
        return
    table(
        ["client", "roles", "keys", "state", "last used", "sessions"],
        [
            [
                client.client, ", ".join(client.roles), len(client.key_ids),
                "disabled" if client.disabled else "ok", _when(client.last_used), client.sessions,
            ]
            for client in found
        ],
        empty="no clients",
    )  # fmt: skip


@app.command()
def show(name: Name, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show a client: roles, ids of its keys, when it was last used."""
    found, audience = _listed(directory, acting, name)
    client = found[0]
    emit(
        {**_json(client), "audience": audience},
        as_json=as_json,
        text=f"{client.client} ({client.client_id}): {'disabled' if client.disabled else 'ok'}\n"
        f"roles: {', '.join(client.roles)}\nkeys: {', '.join(client.key_ids)}\n"
        f"registered: {_when(client.created)}\nlast used: {_when(client.last_used)}\n"
        f"sessions: {client.sessions}\naudience of its assertions: {audience}",
    )


@app.command("rotate-key")
def rotate_key(
    name: Name, jwks: Jwks, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False
) -> None:
    """Replace a client's keys by those of the file, and end its sessions.

    For a change without a gap: first a file with the old and the new key, then one with the new.
    """
    from sealward.api.gateway.v1 import workload_pb2 as pb
    from sealward.cli.connect import CALL_SECONDS

    keys = _read(jwks)
    with _clients(directory, acting, "replacing the keys") as (stub, who):
        done = stub.RotateClientKeys(
            pb.RotateClientKeysRequest(client=name, jwks=keys),
            timeout=CALL_SECONDS,
            metadata=who.metadata,
        )
    emit(
        {"client": name, "revoked": done.revoked},
        as_json=as_json,
        text=f"replaced; sessions ended: {done.revoked}",
    )


@app.command()
def disable(name: Name, acting: As = "", directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Stop a client from logging in and end its sessions.

    Its certificate still sends spans until it ends: sealward certs revoke takes it back.
    """
    from sealward.api.gateway.v1 import workload_pb2 as pb
    from sealward.cli.connect import CALL_SECONDS

    with _clients(directory, acting, "disabling the client") as (stub, who):
        done = stub.DisableClient(
            pb.DisableClientRequest(client=name), timeout=CALL_SECONDS, metadata=who.metadata
        )
    emit(
        {"client": name, "revoked": done.revoked},
        as_json=as_json,
        text=f"disabled {name}; sessions ended: {done.revoked}",
    )


@app.command()
def token(
    name: Name,
    key_file: Annotated[
        Path, typer.Option("--key-file", metavar="FILE", help="The client's private key (JWK).")
    ],
    audience: Annotated[
        str, typer.Option("--audience", help="What assertions have as aud, if it is set.")
    ] = "",
    scope: Annotated[
        str, typer.Option("--scope", help="Only these of its roles, apart by spaces.")
    ] = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Log a client in with an assertion; the token is kept in `clients/NAME/session`."""
    from sealward.api.gateway.v1 import workload_pb2 as pb
    from sealward.api.gateway.v1.workload_pb2_grpc import WorkloadServiceStub
    from sealward.cli.connect import CALL_SECONDS, trust_domain, user_channel
    from sealward.cli.connect import user_material as material
    from sealward.cli.login import keep_session
    from sealward.cli.rpc import calling
    from sealward.client.assertion import ASSERTION_TYPE, sign_assertion
    from sealward.client.errors import ClientError

    suite = Suite.at(directory)
    private = _read(key_file)
    aud = audience or (
        f"https://gateway.{trust_domain(material(suite, name))}"
        "/sealward.api.gateway.v1.WorkloadService/IssueToken"
    )
    try:
        assertion = sign_assertion(private, name, aud)
    except ClientError as error:
        raise usage(str(error), "sealward client key --out FILE --jwks FILE") from None
    with calling("logging in"), user_channel(suite, name) as channel:
        answer = WorkloadServiceStub(channel).IssueToken(
            pb.IssueTokenRequest(
                grant_type="client_credentials",
                client_assertion_type=ASSERTION_TYPE,
                client_assertion=assertion,
                scope=scope,
            ),
            timeout=CALL_SECONDS,
        )
    keep_session(suite, name, answer.access_token, answer.session_id)
    emit(
        {"token": answer.access_token, "expires_in": answer.expires_in, "scope": answer.scope},
        as_json=as_json,
        text=f"{name} is logged in for {answer.expires_in} s as {answer.scope}",
    )


def _listed(directory: Path, acting: str, name: str) -> tuple[list[Client], str]:
    from sealward.api.gateway.v1 import workload_pb2 as pb
    from sealward.cli.connect import CALL_SECONDS

    with _clients(directory, acting, "listing clients") as (stub, who):
        answer = stub.ListClients(
            pb.ListClientsRequest(client=name), timeout=CALL_SECONDS, metadata=who.metadata
        )
    return list(answer.clients), str(answer.audience)


@contextmanager
def _clients(
    directory: Path, acting: str, what: str
) -> Iterator[tuple[WorkloadServiceStub, Acting]]:
    from sealward.api.gateway.v1.workload_pb2_grpc import WorkloadServiceStub
    from sealward.cli.rpc import calling

    with calling(what), Acting(Suite.at(directory), acting) as who:
        yield WorkloadServiceStub(who.channel), who


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None


def _json(client: Client) -> dict[str, Any]:
    return {
        "client": client.client, "client_id": client.client_id, "roles": list(client.roles),
        "key_ids": list(client.key_ids), "disabled": client.disabled, "created": client.created,
        "last_used": client.last_used, "sessions": client.sessions,
    }  # fmt: skip


def _when(seconds: int) -> str:
    if not seconds:
        return "never"
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
