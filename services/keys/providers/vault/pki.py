"""Certificates from Vault's PKI engine: the CA's key never leaves Vault.

We send the names, Vault's roles bound them (one role for each service), and what comes back is
checked before it is handed on: our names and no others, the key that was asked for, an issuer that
is in the trust bundle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.unreadable import X509_ERRORS
from services.keys.authority import Clock, utc_now
from services.keys.profiles import Profile, invalid_request, read_request
from services.keys.providers.base import Issued, TrustedAuthority
from services.keys.providers.vault.issuers import Issuers, unusable
from services.keys.providers.vault.names import pki_role
from services.keys.providers.vault.session import VaultSession
from services.keys.providers.vault.shredder import Shredder
from services.keys.providers.vault.troubles import RefusedError
from services.keys.providers.vault.wire import Answer

_REFRESH_SECONDS = 30.0


class VaultAuthority:
    """CertificateAuthority over PKI. Thread-safe."""

    def __init__(
        self,
        session: VaultSession,
        shredder: Shredder,
        trust_domain: str,
        *,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._pki = session.config.names.pki
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._issuers = Issuers(session, shredder, trust_domain, clock)
        self._asked = float("-inf")

    def load(self) -> None:
        """Read the authorities; raise StartupError where there is none that can be used."""
        try:
            self._issuers.read()
        except SealwardError as error:
            raise StartupError(f"the CA in Vault cannot be used: {error.message}") from None
        self._asked = self._monotonic()

    @property
    def bundle_pem(self) -> bytes:
        """The certificates to trust, the one that signs first.

        Asked for anew every half minute: another process, or an administrator, may have changed
        what there is. While Vault does not answer it stays what it was.
        """
        with self._lock:
            now = self._monotonic()
            due = now - self._asked >= _REFRESH_SECONDS
            if due:
                self._asked = now
        if due:
            self._issuers.refresh()
        return b"".join(a.certificate_pem for a in self.authorities())

    def authorities(self) -> list[TrustedAuthority]:
        """The authorities: the one that signs, then the others, newest first."""
        found = [
            TrustedAuthority(issuer.certificate.public_bytes(Encoding.PEM), state)
            for issuer, state in self._issuers.states()
        ]
        return sorted(found, key=lambda one: one.state != "issuing")

    def announce(self) -> None:
        """Make the next authority unless there is one; raise KEYSTORE_UNAVAILABLE."""
        self._issuers.announce()

    def adopt(self) -> None:
        """Sign with the next authority, if there is one; raise KEYSTORE_UNAVAILABLE."""
        self._issuers.adopt()

    def drop(self) -> None:
        """Destroy those that signed before; raise KEYSTORE_UNAVAILABLE or NOT_SUPPORTED."""
        self._issuers.drop()

    def issue(self, profile: Profile, request: x509.CertificateSigningRequest) -> Issued:
        """Sign a leaf; raise CERTIFICATE_REQUEST_INVALID or KEYSTORE_UNAVAILABLE."""
        public = read_request(request)
        wanted = {
            "uri_sans": profile.identity.uri,
            "alt_names": ",".join(profile.dns),
            "ip_sans": ",".join(profile.addresses),
            "exclude_cn_from_sans": True,
            "ttl": f"{profile.seconds}s",
            "format": "pem",
        }
        try:
            answer: Answer = self._session.api.pki.sign_certificate(
                pki_role(profile.identity),
                request.public_bytes(Encoding.PEM).decode("ascii"),
                profile.identity.name,
                wanted,
                mount_point=self._pki,
            )
        except RefusedError as error:
            if error.says("csr") or error.says("CSR"):
                raise invalid_request() from None
            raise unusable() from None
        return self._checked(answer.data, profile, public)

    def _checked(
        self, data: Mapping[str, Any], profile: Profile, public: ec.EllipticCurvePublicKey
    ) -> Issued:
        try:
            leaf = x509.load_pem_x509_certificate(str(data.get("certificate")).encode())
            right = (
                _names_of(leaf) == _wanted(profile)
                and leaf.public_key() == public
                and not _is_authority(leaf)
            )
        except X509_ERRORS:
            right = False
        if not right:
            raise unusable()
        if not _signed(leaf, self._issuers.issuing.certificate):
            # Another authority signs since we last looked.
            self._issuers.refresh()
            if not any(_signed(leaf, one.certificate) for one, _ in self._issuers.states()):
                raise unusable()
        return Issued(
            leaf.public_bytes(Encoding.PEM),
            leaf.serial_number,
            int(leaf.not_valid_after_utc.timestamp()),
        )


def _names_of(leaf: x509.Certificate) -> tuple[object, ...]:
    """Every name that a certificate carries."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        [(part.oid, part.value) for part in leaf.subject],
        sorted(f"{type(name).__name__}:{getattr(name, 'value', None)}" for name in names),
    )


def _wanted(profile: Profile) -> tuple[object, ...]:
    names = [f"{x509.UniformResourceIdentifier.__name__}:{profile.identity.uri}"]
    names += [f"{x509.DNSName.__name__}:{name}" for name in profile.dns]
    names += [f"{x509.IPAddress.__name__}:{address}" for address in profile.addresses]
    return [(NameOID.COMMON_NAME, profile.identity.name)], sorted(names)


def _is_authority(leaf: x509.Certificate) -> bool:
    try:
        return leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _signed(leaf: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
