"""`sealward certs list|revoke`: which certificates are out, and taking them back."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line, table
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub
    from sealward.api.keys.v1.trust_pb2 import Certificate

_PREFIX = "REVOCATION_REASON_"
REASONS = ("key-compromise", "privilege-withdrawn", "cessation", "superseded")

Identity = Annotated[
    str,
    typer.Option(
        "--identity", metavar="ID",
        help="spiffe://<trust domain>/<kind>/<name>, or <kind>/<name> of this suite.",
    ),
]  # fmt: skip


def list_(
    identity: Identity = "",
    revoked: Annotated[
        bool, typer.Option("--revoked", help="Only what was revoked, the last first.")
    ] = False,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List the certificates that were issued and have not expired."""
    from sealward.api.keys.v1 import trust_pb2
    from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    admin = Admin(Suite.at(directory))
    with calling("listing certificates"), admin.channel("keys") as channel:
        answer = TrustServiceStub(channel).ListCertificates(
            trust_pb2.ListCertificatesRequest(
                spiffe_id=full_identity(identity, admin.domain), revoked=revoked
            ),
            timeout=CALL_SECONDS,
        )
    rows = [certificate_row(c) for c in answer.certificates]
    if as_json:
        emit(
            {
                "certificates": rows,
                "version": answer.version,
                "truncated": answer.truncated,
            },
            as_json=True,
        )
        return
    table(
        ["identity", "serial", "issued", "valid until", "state"],
        [
            [
                r["identity"], r["serial"], r["issued"], r["not_after"],
                f"revoked ({r['reason']})" if r["state"] == "revoked" else r["state"],
            ]
            for r in rows
        ],
        empty="no certificates",
    )  # fmt: skip
    if answer.truncated:
        line("there are more: name one with --identity", err=True)


def revoke(
    reason: Annotated[
        str, typer.Option("--reason", metavar="REASON", help=f"One of {', '.join(REASONS)}.")
    ],
    serial: Annotated[str, typer.Option("--serial", metavar="HEX", help="This certificate.")] = "",
    identity: Identity = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Revoke one certificate, or every certificate of an identity.

    Every service refuses it at once, on connections that are open too. With `key-compromise` its
    key is never certified again. See docs/runbooks/revoke.md.
    """
    from sealward.api.keys.v1 import trust_pb2
    from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    if bool(serial) == bool(identity):
        raise usage("name one certificate or one identity", "--serial HEX, or --identity ID")
    if reason not in REASONS:
        raise usage(f"{reason} is not a reason", f"one of {', '.join(REASONS)}")
    suite = Suite.at(directory)
    admin = Admin(suite)
    with calling("revoking"), admin.channel("keys") as channel:
        answer = TrustServiceStub(channel).Revoke(
            trust_pb2.RevokeRequest(
                # As openssl and browsers print them, too.
                serial=serial.replace(":", "").strip(),
                spiffe_id=full_identity(identity, admin.domain),
                reason=trust_pb2.RevocationReason.Value(_PREFIX + reason.upper().replace("-", "_")),
            ),
            timeout=CALL_SECONDS,
        )
    rows = [certificate_row(c) for c in answer.revoked]
    if admin.serial in {row["serial"] for row in rows}:
        # The next command enrols anew, with a new key.
        (suite.admin / "cert.pem").unlink(missing_ok=True)
    text = "".join(f"\n  {r['serial']}  {r['identity'] or 'not issued here'}" for r in rows)
    emit(
        {"revoked": rows, "version": answer.version},
        as_json=as_json,
        text=f"revoked {len(rows)}:{text}" if rows else "all of them were revoked before",
    )


def revoked_serials(suite: Suite) -> frozenset[str]:
    """Return what was revoked; nothing when keys does not answer."""
    import grpc

    from sealward.api.keys.v1 import trust_pb2
    from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceStub
    from sealward.cli.connect import Admin

    try:
        with Admin(suite).channel("keys") as channel:
            answer = TrustServiceStub(channel).ListCertificates(
                trust_pb2.ListCertificatesRequest(revoked=True), timeout=3.0
            )
    except grpc.RpcError:
        return frozenset()
    return frozenset(certificate.serial for certificate in answer.certificates)


def certificate_row(certificate: Certificate) -> dict[str, Any]:
    """Return what is printed of a certificate of the register."""
    from sealward.api.keys.v1 import trust_pb2

    revoked = bool(certificate.revoked_at)
    state = "expired" if certificate.not_after <= time.time() else "ok"
    row: dict[str, Any] = {
        "identity": certificate.spiffe_id,
        "serial": certificate.serial,
        "issued": _time(certificate.issued_at),
        "not_after": _time(certificate.not_after),
        "state": "revoked" if revoked else state,
    }
    if revoked:
        name = trust_pb2.RevocationReason.Name(certificate.reason)
        row["revoked"] = _time(certificate.revoked_at)
        row["reason"] = name.removeprefix(_PREFIX).lower().replace("_", "-")
    return row


def full_identity(text: str, trust_domain: str) -> str:
    """Return the SPIFFE ID of `kind/name`; a whole one, or nothing, stays as it is."""
    if not text or text.startswith("spiffe://"):
        return text
    return f"spiffe://{trust_domain}/{text}"


def certify_anew(suite: Suite, stub: UserServiceStub, user: str) -> None:
    """Certify a user's key; where it may not be certified any more, a new one.

    Raise grpc.RpcError when the gateway refuses.
    """
    import grpc

    from sealward.cli.certificates import issue_client
    from sealward.cli.rpc import error_info

    try:
        issue_client(suite, stub, user)
    except grpc.RpcError as error:
        if error_info(error)[0] != "KEY_REVOKED":
            raise
        (suite.clients / user / "key.pem").unlink()
        issue_client(suite, stub, user)
        line(f"{user} has a new key: log in again", err=True)


def _time(seconds: int) -> str:
    if not seconds:
        return ""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
