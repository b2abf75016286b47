"""Who is at the other end of a connection.

Identity is the URI SAN of the verified client certificate (SPIFFE ID shape,
`spiffe://<trust domain>/<kind>/<name>`), read from the transport and never from metadata. The
common name and DNS names are not looked at.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.revocation import Revocations
from sealward.kit.unreadable import X509_ERRORS

if TYPE_CHECKING:
    import grpc

KINDS = frozenset({"service", "user", "workload", "admin"})
SERVICES = ("gateway", "inference", "audit", "keys")

# Names are lower case and short: they stand in log lines, file names and Redis keys.
_URI = re.compile(r"spiffe://([a-z0-9.-]{1,128})/([a-z]{1,16})/([a-z][a-z0-9._-]{0,63})")


@dataclass(frozen=True, slots=True)
class Identity:
    """A parsed SPIFFE ID."""

    uri: str
    trust_domain: str
    kind: str
    name: str

    @property
    def role(self) -> str:
        """`kind/name` where the name matters to access (services, administrator); else the kind."""
        return f"{self.kind}/{self.name}" if self.kind in ("service", "admin") else self.kind


@dataclass(frozen=True, slots=True)
class Peer:
    """The verified other end. `spki_sha256` is the digest of its public key (DER).

    `serial` and `not_after` (seconds since the epoch) are those of its certificate.
    """

    identity: Identity
    spki_sha256: bytes
    address: str
    tls_version: str = "TLSv1.3"
    not_after: float = float("inf")
    serial: int = 0


def spiffe_id(trust_domain: str, kind: str, name: str) -> str:
    """Compose a SPIFFE ID; raise IDENTITY_INVALID when a part is not of its form."""
    return parse_identity(f"spiffe://{trust_domain}/{kind}/{name}").uri


def parse_identity(uri: str) -> Identity:
    """Parse a SPIFFE ID; raise IDENTITY_INVALID when it is not one of ours."""
    found = _URI.fullmatch(uri)
    if found is None or found[2] not in KINDS:
        raise SealwardError(
            Reason.IDENTITY_INVALID,
            "the certificate's URI name is not spiffe://<trust domain>/<kind>/<name>",
        )
    return Identity(uri, found[1], found[2], found[3])


def peer_from_certificate(pem: bytes, address: str, tls_version: str = "TLSv1.3") -> Peer:
    """Read the peer from its leaf certificate (PEM); raise IDENTITY_INVALID."""
    try:
        leaf = x509.load_pem_x509_certificate(pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        spki = leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        not_after = leaf.not_valid_after_utc.timestamp()
    except X509_ERRORS:
        uris = []
        leaf = None
    if leaf is None or len(uris) != 1:
        raise SealwardError(
            Reason.IDENTITY_INVALID, "the certificate must carry exactly one URI name"
        )
    return Peer(
        parse_identity(uris[0]),
        hashlib.sha256(spki).digest(),
        address,
        tls_version,
        not_after,
        leaf.serial_number,
    )


class PeerReader:
    """Reads peers from gRPC contexts; parses each certificate once.

    The cache is keyed by the certificate's bytes, not by the connection's address, because an
    address may come back with another certificate behind it.
    """

    def __init__(self, trust_domain: str, revocations: Revocations, capacity: int = 4096) -> None:
        self._trust_domain = trust_domain
        self.revocations = revocations
        self._capacity = capacity
        self._known: dict[bytes, Peer] = {}

    def identify(self, context: grpc.ServicerContext) -> tuple[Peer, SealwardError | None]:
        """Return the peer of a call, and why it may do nothing: expired, revoked, not to be told.

        Who it is is known in all of these cases, and stands in the record of the refusal. Raises
        IDENTITY_INVALID when it has no usable identity.
        """
        auth = context.auth_context()
        pem = cast("bytes", auth.get("x509_pem_cert", (b"",))[0])
        version = auth.get("ssl_tls_version", (b"",))[0]
        if version != b"TLSv1.3":
            raise SealwardError(Reason.IDENTITY_INVALID, "TLS 1.3 is required")
        known = self._known.get(pem)
        if known is None:
            known = peer_from_certificate(pem, context.peer())
            if known.identity.trust_domain != self._trust_domain:
                raise SealwardError(
                    Reason.IDENTITY_INVALID, "the certificate belongs to another trust domain"
                )
            if len(self._known) >= self._capacity:
                self._known.clear()
            self._known[pem] = known
        # The handshake was long ago: an open connection outlives its certificate.
        if time.time() >= known.not_after:
            return known, SealwardError(Reason.IDENTITY_INVALID, "the certificate has expired")
        return known, self.revocations.problem(known)

    def read(self, context: grpc.ServicerContext) -> Peer:
        """Return the peer of a call; raise SealwardError when it may do nothing."""
        peer, problem = self.identify(context)
        if problem is not None:
            raise problem
        return peer
