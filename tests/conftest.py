"""Fixtures that every kind of test may use."""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import datetime as dt
import ipaddress
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sealward.kit.tls import Material, key_to_pem, load_material


def pytest_sessionstart() -> None:
    """Where every suite is to run on Vault, build and start the server before any test's time."""
    if os.environ.get("SEALWARD_TEST_PROVIDER") == "vault":
        from tests.support.vault import MISSING, binary, shared

        if not os.environ.get("VAULT_ADDR") and not os.environ.get("VAULT_BIN") and not binary():
            pytest.exit(MISSING, 1)
        shared()


class CertificateAuthority:
    """A throwaway CA that issues leaves with SPIFFE IDs."""

    def __init__(self, name: str = "test-ca") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._build(self.name, self.key.public_key(), [], ca=True)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *uris: str,
        dns: tuple[str, ...] = (),
        seconds: int = 3600,
        bundle: bytes = b"",
        backdate: int = 60,
    ) -> Material:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
        leaf = self._build(subject, key.public_key(), names, seconds=seconds, backdate=backdate)
        chain = leaf.public_bytes(serialization.Encoding.PEM)
        return load_material(key_to_pem(key), chain, bundle or self.pem)

    def _build(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        *,
        ca: bool = False,
        seconds: int = 3600,
        backdate: int = 60,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(seconds=backdate))
            .not_valid_after(now + dt.timedelta(seconds=seconds))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


@pytest.fixture(scope="session")
def authority() -> CertificateAuthority:
    return CertificateAuthority()
