"""Certificates in use: one holder a process, read by every listener and channel.

Private keys of services are made here and live in memory only. Renewal installs a new key and
certificate; listeners take it with the next handshake, channels are swapped (see channel.py).
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sealward.kit.errors import StartupError
from sealward.kit.unreadable import X509_ERRORS


@dataclass(frozen=True, slots=True)
class Material:
    """A private key with its certificate chain and the certificates to trust, all PEM."""

    key_pem: bytes
    chain_pem: bytes
    bundle_pem: bytes
    not_before: float
    not_after: float
    serial: int

    @property
    def half_life(self) -> float:
        """The time (seconds since the epoch) at which it is to be renewed."""
        # Certificates are dated a minute back; that minute is no part of the life.
        return self.not_after - max(0.0, self.not_after - self.not_before - 60) / 2

    @property
    def made(self) -> float:
        """When it was made (seconds since the epoch)."""
        return self.not_before + 60

    @property
    def current(self) -> bool:
        """Whether it is of the authority that signs, as far as its own trust bundle tells."""
        return is_current(self.chain_pem, self.bundle_pem)

    def __repr__(self) -> str:
        return f"Material(not_after={self.not_after})"


def load_material(key_pem: bytes, chain_pem: bytes, bundle_pem: bytes) -> Material:
    """Check that key and certificate belong together; raise StartupError with one clear line."""
    try:
        leaf = x509.load_pem_x509_certificate(chain_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        x509.load_pem_x509_certificates(bundle_pem)
        certified = leaf.public_key()
        not_before, not_after = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    except X509_ERRORS:
        raise StartupError("certificate, key or trust bundle is not valid PEM") from None
    if key.public_key() != certified:
        raise StartupError("the private key does not belong to the certificate")
    if not_after <= dt.datetime.now(dt.UTC):
        raise StartupError("the certificate has expired")
    return Material(
        key_pem,
        chain_pem,
        bundle_pem,
        not_before.timestamp(),
        not_after.timestamp(),
        leaf.serial_number,
    )


def is_current(chain_pem: bytes, bundle_pem: bytes) -> bool:
    """Return whether a chain ends in the first authority of a bundle: the one that signs now."""
    last = x509.load_pem_x509_certificates(chain_pem)[-1]
    first = x509.load_pem_x509_certificates(bundle_pem)[0]
    if last == first:
        return True
    try:
        issuer = last.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        signs = first.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return last.issuer == first.subject
    return issuer.key_identifier == signs.digest


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key (grpcio refuses Ed25519 certificates)."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Serialise a private key as PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def make_csr(key: ec.EllipticCurvePrivateKey, name: str) -> x509.CertificateSigningRequest:
    """Make a certificate request. Its name is for the reader: the signer takes its own."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())


class _Changes:
    """What a listener's core asks at each handshake: None while nothing has changed.

    Anything else makes it replace the settings that other handshakes are reading.
    """

    def __init__(
        self, material: Callable[[], Material], roots: Callable[[Material], bytes | None]
    ) -> None:
        self._material = material
        self._roots = roots
        self._lock = threading.Lock()
        self._served: Material | None = None

    def configuration(self, material: Material) -> grpc.ServerCertificateConfiguration:
        """Return material as the core takes it, and note that it has been taken."""
        self._served = material
        return grpc.ssl_server_certificate_configuration(
            [(material.key_pem, material.chain_pem)], self._roots(material)
        )

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            material = self._material()
            return None if material is self._served else self.configuration(material)


class Credentials:
    """The material in use. Thread-safe; holders are told of each change."""

    def __init__(self, material: Material | None = None) -> None:
        self._lock = threading.Lock()
        self._material = material
        self._listeners: list[Callable[[], None]] = []
        self._before: list[Callable[[], object]] = []

    @property
    def material(self) -> Material:
        """The material in use; raise StartupError before there is any."""
        with self._lock:
            if self._material is None:
                raise StartupError("there is no certificate")
            return self._material

    def install(self, material: Material) -> None:
        """Put new material into use."""
        self._prepare()
        with self._lock:
            self._material = material
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def trust(self, bundle_pem: bytes) -> None:
        """Put another trust bundle into use beside the key and certificate that there are.

        Raise StartupError for one that cannot be used.
        """
        try:
            x509.load_pem_x509_certificates(bundle_pem)
        except ValueError:
            raise StartupError("the trust bundle is not valid PEM") from None
        self._prepare()
        with self._lock:
            if self._material is None:
                raise StartupError("there is no certificate")
            self._material = replace(self._material, bundle_pem=bundle_pem)
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change."""
        with self._lock:
            self._listeners.append(listener)

    def before_change(self, prepare: Callable[[], object]) -> None:
        """Call `prepare` before each change, by whoever makes it."""
        with self._lock:
            self._before.append(prepare)

    def server(self) -> grpc.ServerCredentials:
        """Credentials of a listener that requires client certificates and follows renewals.

        Whoever listens with it pins each change (pinning.py).
        """
        return self._following(lambda material: material.bundle_pem)

    def server_alone(self) -> grpc.ServerCredentials:
        """Credentials of the one listener whose callers have no certificate yet (joining)."""
        return self._following(lambda _material: None)

    def _following(self, roots: Callable[[Material], bytes | None]) -> grpc.ServerCredentials:
        changes = _Changes(lambda: self.material, roots)
        first = self.material
        return grpc.dynamic_ssl_server_credentials(
            changes.configuration(first),
            changes,  # type: ignore[arg-type] # None means unchanged; the stubs do not know
            require_client_authentication=roots(first) is not None,
        )

    def _prepare(self) -> None:
        with self._lock:
            before = list(self._before)
        for prepare in before:
            prepare()

    def channel(self) -> grpc.ChannelCredentials:
        """Credentials of a channel, as of now: grpcio has no reload on the client side."""
        material = self.material
        return grpc.ssl_channel_credentials(
            material.bundle_pem, material.key_pem, material.chain_pem
        )

    def ssl_context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        """A TLS 1.3 context with client certificates, for the listeners that are not gRPC.

        `ssl` reads certificates from files only: they go through an anonymous memory file, so that
        no private key touches a disk.
        """
        material = self.material
        protocol = (
            ssl.PROTOCOL_TLS_SERVER
            if purpose is ssl.Purpose.CLIENT_AUTH
            else ssl.PROTOCOL_TLS_CLIENT
        )
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        # What is in the bundle is trusted itself, as gRPC does it: an authority below a hospital's
        # root, and not that root.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=material.bundle_pem.decode("ascii"))
        with open(os.memfd_create("tls", os.MFD_CLOEXEC), "wb") as memory:  # noqa: PTH123
            memory.write(material.key_pem + material.chain_pem)
            memory.flush()
            context.load_cert_chain(f"/proc/self/fd/{memory.fileno()}")
        return context
