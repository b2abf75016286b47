"""Certificates of the local administrator and of the users and clients in `clients/`.

The administrator enrols locally (folder permission is the authenticator on one machine). A user's
key is made here, only its request travels, and the key pair stays on renewal because the user's
session is bound to it. Users are certified through the gateway, as the administrator, so that a
certificate that expired while the suite was down comes back too.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from sealward.cli.errors import CliError, unavailable
from sealward.cli.suite import Suite, private_folder, write_private
from sealward.kit.enroll import enroll
from sealward.kit.errors import StartupError
from sealward.kit.tls import Material, key_to_pem, load_material, make_csr, new_key

if TYPE_CHECKING:
    from sealward.api.gateway.v1.gateway_pb2_grpc import UserServiceStub

ENROLL_SECONDS = 30.0


def read_material(folder: Path) -> Material | None:
    """Read key, certificate and trust bundle of a folder; None when missing, broken or expired."""
    try:
        return load_material(
            (folder / "key.pem").read_bytes(),
            (folder / "cert.pem").read_bytes(),
            (folder / "ca.pem").read_bytes(),
        )
    except (OSError, StartupError):
        return None


def is_fresh(suite: Suite, material: Material) -> bool:
    """Whether a certificate needs no renewal yet.

    Before half of its life; with the trust bundle as it is now; of the authority that signs.
    """
    try:
        bundle = suite.bundle_file.read_bytes()
    except OSError:
        bundle = material.bundle_pem
    return time.time() < material.half_life and material.bundle_pem == bundle and material.current


def ensure_admin(suite: Suite, timeout: float = ENROLL_SECONDS, *, anew: bool = False) -> Material:
    """Return the administrator's certificate, enrolled anew when that is due, or asked for."""
    found = read_material(suite.admin)
    if found is not None and is_fresh(suite, found) and not anew:
        return found
    with _one_at_a_time(suite.run / "admin.lock"):
        return _enroll_admin(suite, timeout, anew=anew)


def _enroll_admin(suite: Suite, timeout: float, *, anew: bool) -> Material:
    found = read_material(suite.admin)
    if found is not None and is_fresh(suite, found) and not anew:
        return found
    try:
        material = enroll(suite.enroll_dir, "admin", timeout)
    except StartupError as error:
        if found is not None:
            return found
        raise unavailable(str(error), "sealward status") from None
    private_folder(suite.admin)
    for name, data in (
        ("key.pem", material.key_pem),
        ("cert.pem", material.chain_pem),
        ("ca.pem", material.bundle_pem),
    ):
        write_private(suite.admin / name, data)
    return material


def issue_client(suite: Suite, stub: UserServiceStub, user: str) -> Material:
    """Certify a user's or client's key, made when there is none, and fill its client folder.

    Raise grpc.RpcError when the gateway refuses.
    """
    from sealward.api.gateway.v1 import gateway_pb2 as gw

    folder = private_folder(private_folder(suite.clients) / user)
    key = _client_key(folder / "key.pem")
    csr = make_csr(key, user).public_bytes(Encoding.DER)
    answer = stub.IssueUserCertificate(
        gw.IssueUserCertificateRequest(csr=csr, user=user), timeout=ENROLL_SECONDS
    )
    chain, bundle = answer.certificate_pem.encode(), answer.bundle_pem.encode()
    material = load_material(key_to_pem(key), chain, bundle)
    # The bundle first: whoever reads in between still finds a pair that belongs together.
    write_private(folder / "ca.pem", bundle)
    write_private(folder / "cert.pem", chain)
    write_private(folder / "log.vkey", suite.vkey_file.read_bytes())
    write_private(folder / "profile.json", profile(suite, user, material))
    return material


def profile(suite: Suite, user: str, material: Material) -> bytes:
    """Return the profile.json of a client folder."""
    from sealward.kit.identity import peer_from_certificate

    identity = peer_from_certificate(material.chain_pem, "").identity
    content = {
        "user": user,
        "gateway": suite.address("gateway"),
        "server_name": f"gateway.{identity.trust_domain}",
        "spiffe_id": identity.uri,
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def spread_vkeys(suite: Suite) -> None:
    """Give every client folder the verifier keys as they are now.

    The key of a log to come is in the file days before the log is, and that of a log that changes
    its key as long as both sign: a folder that is renewed in between knows it in time.
    """
    try:
        vkeys = suite.vkey_file.read_bytes()
    except OSError:
        return
    for folder in client_folders(suite):
        try:
            held = (folder / "log.vkey").read_bytes()
        except OSError:
            held = b""
        if vkeys and held != vkeys:
            write_private(folder / "log.vkey", vkeys)


def client_folders(suite: Suite) -> Iterator[Path]:
    """Yield the folders of `clients/` that hold a key."""
    if suite.clients.is_dir():
        for folder in sorted(suite.clients.iterdir()):
            if (folder / "key.pem").is_file():
                yield folder


def renew_clients(
    suite: Suite, stub: Callable[[], UserServiceStub], *, anew: bool = False
) -> tuple[list[str], list[str], float]:
    """Renew what is due (is_fresh), or everything.

    Return the users renewed, those refused (disabled, say), and when (seconds since the epoch) the
    next one is due. `stub` is called when there is anything to renew.
    """
    import grpc

    renewed: list[str] = []
    refused: list[str] = []
    next_due = time.time() + 86400.0
    for folder in client_folders(suite):
        found = read_material(folder)
        if found is None or anew or not is_fresh(suite, found):
            try:
                found = issue_client(suite, stub(), folder.name)
            except (grpc.RpcError, StartupError, OSError):
                refused.append(folder.name)
                continue
            renewed.append(folder.name)
        next_due = min(next_due, found.half_life)
    return renewed, refused, next_due


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _client_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        key = new_key()
        write_private(path, key_to_pem(key))
    except (ValueError, TypeError):
        raise CliError(f"{path} is not a private key", advice=f"remove {path.parent}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CliError(f"{path} is not an EC key", advice=f"remove {path.parent}")
    return key
