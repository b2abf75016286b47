"""Which names a certificate carries: decided from the caller's identity, never by its request.

A leaf carries one URI name (the SPIFFE ID) and the same name as common name. Services carry a DNS
name, `<service>.<trust domain>`, that channels check; the gateway and audit also answer to
localhost. Everyone else is a client only.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sealward.kit.errors import SealwardError
from sealward.kit.identity import SERVICES, Identity, parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.unreadable import X509_ERRORS

_LOCAL = frozenset({"gateway", "audit"})
_NAMED_BY_GATEWAY = frozenset({"user", "workload"})


@dataclass(frozen=True, slots=True)
class Profile:
    """Names and life (seconds) of a certificate. `server`: may also be used by a listener."""

    identity: Identity
    seconds: int
    server: bool = False
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lives:
    """Lives of certificates in seconds: services and the administrator; users and workloads."""

    service: int
    user: int


def profile_of(identity: Identity, lives: Lives) -> Profile:
    """Return the profile of an identity; raise IDENTITY_FORBIDDEN for a service that is not one."""
    if identity.kind == "service":
        if identity.name not in SERVICES:
            raise SealwardError(Reason.IDENTITY_FORBIDDEN, "there is no such service")
        local = identity.name in _LOCAL
        return Profile(
            identity,
            lives.service,
            server=True,
            dns=(f"{identity.name}.{identity.trust_domain}", *(("localhost",) if local else ())),
            addresses=("127.0.0.1",) if local else (),
        )
    if identity.kind == "admin":
        if identity.name != "local":
            raise SealwardError(Reason.IDENTITY_FORBIDDEN, "there is no such administrator")
        return Profile(identity, lives.service)
    return Profile(identity, lives.user)


def identity_to_certify(caller: Identity, named: str) -> Identity:
    """Whom a call of IssueCertificate is for: the caller, or whom the gateway names.

    Only the gateway may name somebody, and only a user or workload of its own trust domain; raises
    IDENTITY_FORBIDDEN.
    """
    if not named:
        return caller
    try:
        identity = parse_identity(named)
    except SealwardError:
        raise SealwardError(
            Reason.FIELD_INVALID, "spiffe_id is not of its form", field="spiffe_id"
        ) from None
    if (
        caller.role != "service/gateway"
        or identity.kind not in _NAMED_BY_GATEWAY
        or identity.trust_domain != caller.trust_domain
    ):
        raise SealwardError(
            Reason.IDENTITY_FORBIDDEN, f"{caller.role} may not name whom a certificate is for"
        )
    return identity


def read_request(request: x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request; raise CERTIFICATE_REQUEST_INVALID.

    The request must be signed by its key, and the key must be P-256: grpcio refuses Ed25519, and
    one kind of key is one kind of test. Names and extensions of the request are not looked at.
    """
    try:
        key = request.public_key()
        valid = (
            isinstance(key, ec.EllipticCurvePublicKey)
            and isinstance(key.curve, ec.SECP256R1)
            and request.is_signature_valid
        )
    except X509_ERRORS:
        valid = False
    if not valid:
        raise invalid_request()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - checked above
    return key


def parse_der_request(data: bytes) -> x509.CertificateSigningRequest:
    """Parse PKCS#10 DER; raise CERTIFICATE_REQUEST_INVALID."""
    try:
        return x509.load_der_x509_csr(data)
    except X509_ERRORS:
        raise invalid_request() from None


def parse_pem_request(data: bytes) -> x509.CertificateSigningRequest:
    """Parse PKCS#10 PEM; raise CERTIFICATE_REQUEST_INVALID."""
    try:
        return x509.load_pem_x509_csr(data)
    except X509_ERRORS:
        raise invalid_request() from None


def invalid_request() -> SealwardError:
    """The one error for a certificate request that is not signed."""
    return SealwardError(
        Reason.CERTIFICATE_REQUEST_INVALID,
        "the certificate request must be PKCS#10 with a P-256 key, signed by that key",
        field="csr",
    )
