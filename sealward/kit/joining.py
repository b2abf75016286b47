"""Joining: a machine without a certificate trades a join token for one.

The token file, made on the first machine and handed over in private, holds the token, whom it is
for, and the certificate authority to trust together with the SHA-256 of its public key. So the
joining machine knows whom it talks to before it shows the token. Its key is made here and stays.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealward.api.keys.v1 import enroll_pb2
from sealward.api.keys.v1.enroll_pb2_grpc import EnrollServiceStub
from sealward.kit.enroll import private_folder, write_private
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Identity, parse_identity
from sealward.kit.tls import Material, key_to_pem, load_material, make_csr, new_key
from sealward.kit.unreadable import X509_ERRORS

TOKEN_BYTES = 32
KEY_FILE, CERTIFICATE_FILE, BUNDLE_FILE = "key.pem", "cert.pem", "ca.pem"
_FORMAT = "sealward/join-token/v1"
_LARGEST_BYTES = 64 << 10
_UNREADABLE: tuple[type[Exception], ...] = (
    *X509_ERRORS, KeyError, AttributeError, RecursionError, SealwardError,
)  # fmt: skip
# A key and a certificate that are about to take the place of the old ones.
_RENEWED_FILE = ".renewed.json"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a token file holds. `expires_at`: epoch seconds; `address`: where to use it."""

    token: bytes
    identity: Identity
    ca_pem: bytes
    expires_at: int
    address: str

    def __repr__(self) -> str:
        return f"JoinToken(identity={self.identity.uri!r}, expires_at={self.expires_at})"


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's public key (SubjectPublicKeyInfo, DER)."""
    return hashlib.sha256(
        certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()


def format_token(token: JoinToken) -> bytes:
    """Return the content of a token file."""
    authority = x509.load_pem_x509_certificate(token.ca_pem)
    document = {
        "format": _FORMAT,
        "token": base64.urlsafe_b64encode(token.token).decode("ascii"),
        "spiffe_id": token.identity.uri,
        "expires": token.expires_at,
        "keys": token.address,
        "ca_spki_sha256": spki_sha256(authority).hex(),
        "ca_pem": token.ca_pem.decode("ascii"),
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def parse_token(data: bytes) -> JoinToken:
    """Read a token file; raise StartupError when it is not one, or its authority was exchanged."""
    try:
        document: dict[str, Any] = json.loads(data)
        if document["format"] != _FORMAT:
            raise ValueError("another format")
        token = JoinToken(
            base64.urlsafe_b64decode(document["token"]),
            parse_identity(document["spiffe_id"]),
            document["ca_pem"].encode("ascii"),
            int(document["expires"]),
            str(document["keys"]),
        )
        pin = spki_sha256(x509.load_pem_x509_certificate(token.ca_pem))
        whole = len(token.token) == TOKEN_BYTES and pin.hex() == document["ca_spki_sha256"]
    except _UNREADABLE:
        whole = False
    if not whole:
        raise StartupError("the token file is not whole: make a new token")
    return token


def read_token_file(path: Path) -> JoinToken:
    """Read a token file that has to be closed to other accounts; raise StartupError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            data = file.read(_LARGEST_BYTES)
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise StartupError(f"{path} is open to others: chmod 600 {path}")
    return parse_token(data)


def join(token: JoinToken, address: str, timeout: float) -> Material:
    """Make a key and trade the token for its certificate.

    The other end has to show a certificate for `keys.<trust domain>` of the authority in the token.
    Raises grpc.RpcError; the token is used up when the other end has read it, however that ended.
    """
    key = new_key()
    request = enroll_pb2.EnrollRequest(
        token=token.token,
        spiffe_id=token.identity.uri,
        ca_spki_sha256=spki_sha256(x509.load_pem_x509_certificate(token.ca_pem)),
        csr=make_csr(key, token.identity.name).public_bytes(Encoding.DER),
    )
    options = [
        ("grpc.ssl_target_name_override", f"keys.{token.identity.trust_domain}"),
        ("grpc.enable_http_proxy", 0),
        # Once: a token must not be shown twice.
        ("grpc.enable_retries", 0),
    ]
    with grpc.secure_channel(
        address, grpc.ssl_channel_credentials(token.ca_pem), options
    ) as channel:
        answer = EnrollServiceStub(channel).Enroll(request, timeout=timeout)
    return load_material(
        key_to_pem(key), answer.certificate_pem.encode("ascii"), answer.bundle_pem.encode("ascii")
    )


class IdentityFolder:
    """Key, certificate and trust bundle of a machine that joined: three PEM files, 0600.

    A renewal replaces all three. Killed in between, the next start finds the new ones whole beside
    the old, and goes on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> Material:
        """Read the files; raise StartupError saying what to do."""
        private_folder(self._folder)
        try:
            renewed = json.loads((self._folder / _RENEWED_FILE).read_bytes())
            self.save(
                load_material(*(renewed[name].encode("ascii") for name in ("key", "cert", "ca")))
            )
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, StartupError):
            # Not whole: it was never in use, or it is of no use any more.
            (self._folder / _RENEWED_FILE).unlink(missing_ok=True)
        try:
            return load_material(
                *(
                    (self._folder / name).read_bytes()
                    for name in (KEY_FILE, CERTIFICATE_FILE, BUNDLE_FILE)
                )
            )
        except FileNotFoundError as error:
            raise StartupError(f"{error.filename} is missing: join again") from None
        except OSError as error:
            raise StartupError(f"{error.filename} cannot be read: {error.strerror}") from None
        except StartupError as error:
            raise StartupError(f"{self._folder}: {error}: join again") from None

    def save(self, material: Material) -> None:
        """Replace the files, durably; raise OSError."""
        private_folder(self._folder)
        renewed = {
            "key": material.key_pem.decode("ascii"),
            "cert": material.chain_pem.decode("ascii"),
            "ca": material.bundle_pem.decode("ascii"),
        }
        write_private(self._folder / _RENEWED_FILE, json.dumps(renewed).encode())
        write_private(self._folder / KEY_FILE, material.key_pem)
        write_private(self._folder / CERTIFICATE_FILE, material.chain_pem)
        write_private(self._folder / BUNDLE_FILE, material.bundle_pem)
        (self._folder / _RENEWED_FILE).unlink()
