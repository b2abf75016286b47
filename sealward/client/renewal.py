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

METHOD = "/sealward.api.gateway.v1.UserService/IssueUserCertificate"

RETRY_SECONDS = 60.0
"""Between two attempts, and between two looks at the clock (a suspended machine stops the wait)."""


def utc_now() -> float:
    """Seconds since the epoch."""
    return dt.datetime.now(dt.UTC).timestamp()


class Renewal:
    """The certificate in use and what it takes to have the next one."""

    def __init__(self, profile: Profile, now: Callable[[], float] = utc_now) -> None:
        self._profile = profile
        self._now = now
        self.material = profile.material()

    def wait(self) -> float:
        """Seconds until the next look; 0 when renewal is due."""
        return min(max(self.material.half_life - self._now(), 0.0), RETRY_SECONDS)

    def reload(self) -> Material | None:
        """Take over a newer certificate that somebody put into the profile; None without one.

        Raises ProfileError when the folder holds a key and a certificate that do not fit.
        """
        found = self._profile.material()
        if found.not_after <= self.material.not_after:
            return None
        self.material = found
        return found

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
        self.material = material
        return material

    @staticmethod
    def _identity(material: Material) -> list[str]:
        leaf = x509.load_pem_x509_certificate(material.chain_pem)
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return []
        return names.get_values_for_type(x509.UniformResourceIdentifier)
