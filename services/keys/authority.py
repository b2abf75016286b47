"""The embedded certificate authority: ECDSA P-256, its key in the sealed keystore (RFC 5280)."""

from __future__ import annotations

import datetime as dt
import ipaddress
import threading
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sealward.kit.errors import StartupError
from sealward.seal.secret import Secret
from services.keys.keystore import Keystore
from services.keys.keystoreformat import Authority
from services.keys.profiles import Profile, read_request
from services.keys.providers.base import AuthorityState, Issued, TrustedAuthority

_AUTHORITY_LIFE = dt.timedelta(days=3650)
# Clocks of two machines differ a little; a certificate is good this long before it is made.
_BACKDATED = dt.timedelta(seconds=60)

Clock = Callable[[], dt.datetime]


def utc_now() -> dt.datetime:
    """The wall clock, whole seconds (X.509 knows no fractions)."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def new_authority(trust_domain: str, now: dt.datetime) -> Authority:
    """Make a self-signed authority that may sign leaves and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    # RFC 5280 allows 64 characters in a common name.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Sealward {trust_domain}"[:64])])
    public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(public, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(
        Secret(
            key.private_bytes(
                serialization.Encoding.DER,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        ),
        certificate.public_bytes(serialization.Encoding.DER),
    )


class EmbeddedAuthority:
    """Signs with one of some authorities and trusts all of them. Does not change.

    `issuing` is the place of the one that signs.
    """

    def __init__(
        self, authorities: tuple[Authority, ...], clock: Clock = utc_now, issuing: int = -1
    ) -> None:
        """Load the keys; raise StartupError when they cannot be used."""
        self._clock = clock
        try:
            certificates = [x509.load_der_x509_certificate(a.certificate) for a in authorities]
            key = serialization.load_der_private_key(authorities[issuing].key.reveal(), None)
        except (ValueError, TypeError):
            raise StartupError("the certificate authority in the keystore is damaged") from None
        self._certificate = certificates[issuing]
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != self._certificate.public_key()
        ):
            raise StartupError("the certificate authority in the keystore is damaged")
        if self._certificate.not_valid_after_utc <= clock():
            raise StartupError("the certificate authority in the keystore has expired")
        self._key = key
        others = [c for c in reversed(certificates) if c is not self._certificate]
        self._bundle = b"".join(
            c.public_bytes(serialization.Encoding.PEM) for c in (self._certificate, *others)
        )

    @property
    def bundle_pem(self) -> bytes:
        """The certificates to trust: the one that signs, then the others, newest first."""
        return self._bundle

    @property
    def _issuer(self) -> x509.SubjectKeyIdentifier:
        return self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value

    def issue(self, profile: Profile, request: x509.CertificateSigningRequest) -> Issued:
        """Sign a leaf; raise CERTIFICATE_REQUEST_INVALID."""
        public = read_request(request)
        now = self._clock()
        end = min(
            now + dt.timedelta(seconds=profile.seconds), self._certificate.not_valid_after_utc
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, profile.identity.name)])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(profile.identity.uri)]
        names += [x509.DNSName(name) for name in profile.dns]
        names += [x509.IPAddress(ipaddress.ip_address(a)) for a in profile.addresses]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if profile.server:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._issuer),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            leaf.public_bytes(serialization.Encoding.PEM),
            leaf.serial_number,
            int(leaf.not_valid_after_utc.timestamp()),
        )


class KeystoreAuthority:
    """CertificateAuthority over a keystore: what it trusts and what signs may be replaced."""

    def __init__(self, keystore: Keystore, clock: Clock = utc_now) -> None:
        """Load the keys; raise StartupError when they cannot be used."""
        self._keystore = keystore
        self._clock = clock
        self._lock = threading.Lock()
        self._now = self._load()

    @property
    def bundle_pem(self) -> bytes:
        """The certificates to trust, the one that signs first."""
        return self._now.bundle_pem

    def authorities(self) -> list[TrustedAuthority]:
        """The authorities, the one that signs first."""
        content = self._keystore.content
        found = [
            TrustedAuthority(
                x509.load_der_x509_certificate(a.certificate).public_bytes(
                    serialization.Encoding.PEM
                ),
                _state(place, content.issuing),
            )
            for place, a in enumerate(content.authorities)
        ]
        found.insert(0, found.pop(content.issuing))
        return [found[0], *reversed(found[1:])]

    def issue(self, profile: Profile, request: x509.CertificateSigningRequest) -> Issued:
        """Sign a leaf; raise CERTIFICATE_REQUEST_INVALID."""
        return self._now.issue(profile, request)

    def announce(self) -> None:
        """Make the next authority unless there is one; raise KEYSTORE_UNAVAILABLE."""
        with self._lock:
            content = self._keystore.content
            if content.issuing == len(content.authorities) - 1:
                made = new_authority(content.trust_domain, self._clock())
                self._put((*content.authorities, made), content.issuing)

    def adopt(self) -> None:
        """Sign with the newest authority; raise KEYSTORE_UNAVAILABLE."""
        with self._lock:
            content = self._keystore.content
            if content.issuing != len(content.authorities) - 1:
                self._put(content.authorities, len(content.authorities) - 1)

    def drop(self) -> None:
        """Forget the authorities before the one that signs; raise KEYSTORE_UNAVAILABLE."""
        with self._lock:
            content = self._keystore.content
            if content.issuing:
                self._put(content.authorities[content.issuing :], 0)

    def _put(self, authorities: tuple[Authority, ...], issuing: int) -> None:
        self._keystore.put_authorities(authorities, issuing)
        self._now = self._load()

    def _load(self) -> EmbeddedAuthority:
        content = self._keystore.content
        return EmbeddedAuthority(content.authorities, self._clock, content.issuing)


def _state(place: int, issuing: int) -> AuthorityState:
    if place == issuing:
        return "issuing"
    return "next" if place > issuing else "leaving"


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
