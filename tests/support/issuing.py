"""One certificate and one request, the same bytes in every run."""

from __future__ import annotations

import datetime as dt
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sealward.kit.tls import Material, key_to_pem, load_material

URI = "spiffe://sealward.local/user/fuzz"
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fuzz")])
_BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_END = dt.datetime(2126, 1, 1, tzinfo=dt.UTC)


def _key() -> ec.EllipticCurvePrivateKey:
    # Of a test, and known to everybody.
    return ec.derive_private_key(int.from_bytes(b"a key of the fuzz tests"), ec.SECP256R1())


@cache
def material() -> Material:
    """Return a key with its self-signed certificate, which is its own trust bundle."""
    key = _key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI)]), critical=False
        )
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return load_material(key_to_pem(key), pem, pem)


@cache
def request(encoding: serialization.Encoding) -> bytes:
    """Return a certificate request of the same key."""
    made = x509.CertificateSigningRequestBuilder().subject_name(_NAME)
    signed = made.sign(_key(), hashes.SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(encoding)
