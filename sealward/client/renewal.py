"""Renewal of the client's certificate, at half of its life, with the key that it has.

The key stays because the session is bound to it. Pure but for the profile folder; who owns a
channel makes the call and swaps.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from google.protobuf.message import DecodeError

from sealward.api.gateway.v1.gateway_pb2 import (
    IssueUserCertificateRequest,
    IssueUserCertificateResponse,
)
from sealward.client.errors import ProfileError
from sealward.client.profile import Profile
from sealward.kit.errors import StartupError
from sealward.kit.tls import Material, load_material, make_csr
from sealward.kit.unreadable import X509_ERRORS

METHOD = "/sealward.api.gateway.v1.UserService/IssueUserCertificate"

RETRY_SECONDS = 60.0
"""Between two attempts."""

LOOK_SECONDS = 2.0
"""Between two looks at the clock and at the profile folder, which others may renew."""

_FILES = ("ca.pem", "cert.pem", "key.pem")


def utc_now() -> float:
    """Seconds since the epoch."""
    return dt.datetime.now(dt.UTC).timestamp()


class Renewal:
    """The certificate in use and what it takes to have the next one."""

    def __init__(self, profile: Profile, now: Callable[[], float] = utc_now) -> None:
        self._profile = profile
        self._now = now
        self._seen = self._signature()
        self.material = profile.material()
        self._not_before = 0.0

    @property
    def due(self) -> bool:
        """Whether it is to be renewed now: half of its life is over, or its authority is leaving.

        Not again for a while after an attempt that failed (`failed`).
        """
        now = self._now()
        return now >= self._not_before and (
            now >= self.material.half_life or not self.material.current
        )

    def failed(self) -> None:
        """Note that an attempt failed."""
        self._not_before = self._now() + RETRY_SECONDS

    def reload(self) -> Material | None:
        """Take over what somebody put into the profile meanwhile; None when nothing changed.

        A renewed certificate, or a trust bundle in which the authorities overlap. Raises
        ProfileError when the folder holds a key and a certificate that do not fit.
        """
        signature = self._signature()
        if signature == self._seen:
            return None
        # Before: what cannot be read is looked at again when it has changed again.
        self._seen = signature
        found = self._profile.material()
        if found == self.material:
            return None
        self.material = found
        return found

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        """What tells a file that was replaced from the one before, without reading it."""
        found = []
        for name in _FILES:
            try:
                stat = (self._profile.folder / name).stat()
            except OSError:
                return ()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(found)

    def request(self) -> bytes:
        """Return the serialised request for the next certificate."""
        key = load_pem_private_key(self.material.key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ProfileError(f"{self._profile.folder / 'key.pem'} is not an elliptic curve key")
        csr = make_csr(key, self._profile.user).public_bytes(Encoding.DER)
        return IssueUserCertificateRequest(csr=csr).SerializeToString()

    def accept(self, response: bytes) -> Material:
        """Check the certificate that came, keep it and return it; raises ProfileError."""
        try:
            issued = IssueUserCertificateResponse.FromString(response)
            material = load_material(
                self.material.key_pem,
                issued.certificate_pem.encode(),
                issued.bundle_pem.encode(),
            )
        except (DecodeError, StartupError):
            raise ProfileError("the renewed certificate cannot be used") from None
        if self._identity(material) != self._identity(self.material):
            raise ProfileError("the renewed certificate is for another identity")
        self._profile.install(material.chain_pem, material.bundle_pem)
        self._seen = self._signature()
        self.material = material
        return material

    @staticmethod
    def _identity(material: Material) -> list[str]:
        try:
            leaf = x509.load_pem_x509_certificate(material.chain_pem)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except X509_ERRORS:
            return []
        return names.get_values_for_type(x509.UniformResourceIdentifier)
