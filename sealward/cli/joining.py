"""`sealward certs join-token|join`: a second machine gets its first certificate."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Annotated

import typer

from sealward.cli.errors import CliError, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line
from sealward.cli.suite import Suite
from sealward.cli.times import parse_span
from sealward.cli.trust import full_identity

_SECONDS = 20.0


def join_token(
    identity: Annotated[
        str,
        typer.Option(
            "--identity",
            metavar="ID",
            help="Whom it is for: spiffe://<trust domain>/<kind>/<name>, or <kind>/<name>.",
        ),
    ],
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="TIME", help="How long it may be used: 10s to 1h.")
    ] = "5m",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write it here, mode 0600; else it is printed."),
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Make a join token: one certificate for one identity, once, for a short while.

    The keys service needs SEALWARD_KEYS_JOIN_ADDRESS. See docs/runbooks/join-second-machine.md.
    """
    from sealward.api.keys.v1 import trust_pb2
    from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling
    from sealward.kit.identity import parse_identity
    from sealward.kit.joining import JoinToken, format_token

    seconds = parse_span(ttl)
    if to is not None and to.exists():
        raise usage(f"{to} exists", "name a new file")
    admin = Admin(Suite.at(directory))
    with calling("making a join token"), admin.channel("keys") as channel:
        answer = TrustServiceStub(channel).CreateJoinToken(
            trust_pb2.CreateJoinTokenRequest(
                spiffe_id=full_identity(identity, admin.domain), ttl_seconds=seconds
            ),
            timeout=CALL_SECONDS,
        )
    content = format_token(
        JoinToken(
            answer.token,
            parse_identity(answer.spiffe_id),
            answer.ca_pem.encode("ascii"),
            answer.expires_at,
            answer.join_address,
        )
    )
    until = dt.datetime.fromtimestamp(answer.expires_at, dt.UTC).isoformat(timespec="seconds")
    if to is None:
        # What is printed is the file itself, in both forms.
        line(content.decode("ascii").rstrip("\n"))
        line(f"for {answer.spiffe_id}, once, until {until}", err=True)
        return
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    emit(
        {"file": str(to), "identity": answer.spiffe_id, "expires": until,
         "keys": answer.join_address},
        as_json=as_json,
        text=f"{to}: for {answer.spiffe_id}, once, until {until}",
    )  # fmt: skip


def join(
    token_file: Annotated[
        Path, typer.Option("--token-file", metavar="FILE", help="What `join-token` made.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where key and certificate go.")
    ],
    keys: Annotated[
        str,
        typer.Option(
            "--keys",
            metavar="HOST:PORT",
            help="The listener for joining; as the token says when it is not given.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Trade a join token for a certificate, on the machine that has none.

    The key is made here. The token is used up by the attempt, however it ends.
    """
    import grpc

    from sealward.cli.rpc import calling
    from sealward.cli.suite import private_folder
    from sealward.kit.errors import StartupError
    from sealward.kit.joining import KEY_FILE, IdentityFolder, read_token_file
    from sealward.kit.joining import join as trade

    try:
        token = read_token_file(token_file)
    except StartupError as error:
        raise usage(str(error)) from None
    address = keys or token.address
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise usage(f"{address} is not an address", "--keys HOST:PORT")
    # Before the token is shown: what cannot be kept must not be had.
    private_folder(out)
    if (out / KEY_FILE).exists():
        raise usage(f"{out} holds an identity already", "name an empty folder, or move it aside")
    if not os.access(out, os.W_OK):
        raise usage(f"{out} cannot be written")
    try:
        with calling("joining"):
            material = trade(token, address, _SECONDS)
    except StartupError as error:
        raise CliError(f"the answer is of no use: {error}") from None
    except CliError as error:
        unreached = error.details.get("status") == grpc.StatusCode.UNAVAILABLE.name
        if unreached and not error.details.get("reason"):
            error.message = f"no keys service of the token's authority answers at {address}"
            error.advice = "is SEALWARD_KEYS_JOIN_ADDRESS set there, and the address right?"
        raise
    IdentityFolder(out).save(material)
    until = dt.datetime.fromtimestamp(material.not_after, dt.UTC).isoformat(timespec="seconds")
    emit(
        {"identity": token.identity.uri, "serial": f"{material.serial:x}", "not_after": until,
         "out": str(out)},
        as_json=as_json,
        text=f"{out}: certificate of {token.identity.uri} until {until}",
    )  # fmt: skip
