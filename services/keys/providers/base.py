"""What a key provider does. One conformance suite runs over every implementation.

Methods raise SealwardError: KEYSTORE_UNAVAILABLE when the provider cannot answer now, SEAL_BROKEN
when something sealed does not open, CERTIFICATE_REQUEST_INVALID for a request that is not signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from cryptography import x509

from sealward.seal.context import EncryptionContext
from services.keys.profiles import Profile

State = Literal["ready", "degraded", "sealed"]


class BranchKeys(Protocol):
    """Makes and opens branch keys under key-encryption keys that never leave the provider."""

    name: str
    """`embedded` or `vault`."""
    single_host: bool
    """True when keys and data live on one machine."""

    def state(self) -> State:
        """`ready`; `degraded` = only what is leased serves; `sealed` = nothing does."""

    def create(self, context: EncryptionContext) -> tuple[bytes, bytes]:
        """Make a branch key; return it (32 bytes) and its wrapped form."""

    def open(self, context: EncryptionContext, wrapped: bytes) -> bytes:
        """Open a wrapped branch key that was made for exactly this context."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate: leaf and intermediates as PEM, serial number, end of life (epoch seconds)."""

    chain_pem: bytes
    serial: int
    not_after: int


class CertificateAuthority(Protocol):
    """Signs certificates with names that the service decided on."""

    @property
    def bundle_pem(self) -> bytes:
        """The certificates to trust, PEM; several while an authority is replaced."""

    def issue(self, profile: Profile, request: x509.CertificateSigningRequest) -> Issued:
        """Sign the request's public key under the names of the profile and no others."""
