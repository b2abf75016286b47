"""`sealward certs`: the certificates in use."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli import authority, joining, trust
from sealward.cli.errors import CliError, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import SERVICES, Suite

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from sealward.kit.tls import Material

app = typer.Typer(help="Certificates.", no_args_is_help=True)
app.command("list")(trust.list_)
app.command("revoke")(trust.revoke)
app.command("join-token")(joining.join_token)
app.command("join")(joining.join)


@app.command()
def show(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Show the certificates of services, administrator and users, and the authorities."""
    suite = Suite.at(directory)
    # Raises where there is no suite.
    suite.endpoints()
    rows = collect(suite)
    running = suite.supervisor_pid() is not None
    found = authority.describe(authority.authority_status(suite)) if running else None
    if as_json:
        emit({"certificates": rows, "authority": found}, as_json=True)
        return
    table(
        ["holder", "identity", "valid until", "state"],
        [[r["holder"], r["identity"], r["not_after"], r["state"]] for r in rows],
        empty="no certificates",
    )
    if found is not None:
        line()
        table(
            ["authority", "valid until", "state"],
            [[a["fingerprint"][:16], a["not_after"], a["state"]] for a in found["authorities"]],
        )
        if found["under_way"]:
            line(authority.in_words(found))


@app.command()
def rotate(
    user: Annotated[
        str, typer.Option("--user", metavar="NAME", help="This user's; else every one that is due.")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Those of every service, the administrator and all users.")
    ] = False,
    ca: Annotated[
        bool, typer.Option("--ca", help="Replace the certificate authority; it takes two lives.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="With --ca: in minutes. Others must renew in time.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="With --ca: return when it is done.")
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Renew certificates of `clients/` now. Key pairs stay: sessions are bound to them.

    Who is named and has a key that was revoked gets a new one.
    Services and the administrator renew theirs by themselves.
    """
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.cli.connect import Admin, user_folder
    from sealward.cli.renew import renew
    from sealward.cli.rpc import calling

    suite = Suite.at(directory)
    suite.require_running()
    if (now or wait) and not ca:
        raise usage("--now and --wait go with --ca", "sealward certs rotate --ca --now --wait")
    if ca:
        status = authority.rotate_authority(suite, now=now, wait=wait, quiet=as_json)
        emit(status, as_json=as_json, text=authority.in_words(status))
        return
    if everything:
        done = authority.renew_everything(suite)
        emit(
            done, as_json=as_json, text=f"renewed: {', '.join(done['services'] + done['renewed'])}"
        )
        return
    if user:
        user_folder(suite, user)
        with calling("renewing"), Admin(suite).channel("gateway") as channel:
            trust.certify_anew(suite, UserServiceStub(channel), user)
        renewed, refused = [user], list[str]()
    else:
        renewed, refused = renew(suite)
    if refused:
        raise CliError(
            f"not renewed: {', '.join(refused)}", advice="sealward user list", renewed=renewed,
            refused=refused,
        )  # fmt: skip
    emit(
        {"renewed": renewed},
        as_json=as_json,
        text=f"renewed: {', '.join(renewed) or 'nothing was due'}",
    )


def collect(suite: Suite) -> list[dict[str, Any]]:
    """Return one row for each certificate that is in use."""
    from cryptography.x509 import load_pem_x509_certificate

    from sealward.cli.certificates import client_folders, ensure_admin

    rows: list[dict[str, Any]] = []
    if suite.supervisor_pid() is not None:
        material = ensure_admin(suite)
        for name in SERVICES:
            # ssl.SSLError is an OSError.
            with suppress(OSError):
                rows.append(_row(f"service {name}", served(suite, name, material)))
    for folder, holder in [
        (suite.admin, "administrator"),
        *((f, f"user {f.name}") for f in client_folders(suite)),
    ]:
        with suppress(OSError, ValueError):
            rows.append(_row(holder, load_pem_x509_certificate((folder / "cert.pem").read_bytes())))
    if suite.supervisor_pid() is not None:
        revoked = trust.revoked_serials(suite)
        for row in rows:
            if row["serial"] in revoked:
                row["state"] = "revoked"
    return rows


def served(suite: Suite, name: str, material: Material) -> Certificate:
    """Return the certificate that a service shows in its handshake."""
    import socket
    import ssl

    from cryptography.x509 import load_der_x509_certificate

    from sealward.kit.settings import split_address
    from sealward.kit.tls import Credentials

    context = Credentials(material).ssl_context(ssl.Purpose.SERVER_AUTH)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    address = split_address(suite.address(name))
    with (
        socket.create_connection(address, timeout=5) as plain,
        context.wrap_socket(plain) as secure,
    ):
        return load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")


def _row(holder: str, certificate: Certificate) -> dict[str, Any]:
    from cryptography import x509

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = dt.datetime.now(dt.UTC)
    # Certificates are dated a minute back; that minute is no part of the life.
    made = min(start + dt.timedelta(seconds=60), end)
    state = "ok" if now < made + (end - made) / 2 else "due"
    return {
        "holder": holder,
        "identity": next(iter(names.get_values_for_type(x509.UniformResourceIdentifier)), ""),
        "serial": f"{certificate.serial_number:x}",
        "not_before": start.isoformat(timespec="seconds"),
        "not_after": end.isoformat(timespec="seconds"),
        "state": "expired" if now >= end else state,
    }
