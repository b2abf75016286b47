"""What a key provider does. One conformance suite runs over every implementation.

Methods raise SealwardError: KEYSTORE_UNAVAILABLE when the provider cannot answer now, SEAL_BROKEN
when something sealed does not open, CERTIFICATE_REQUEST_INVALID for a request that is not signed,
NOT_FOUND for a key-encryption key that does not exist.

A key-encryption key (KEK) belongs to a tenant and purpose and has versions, numbered from 1. The
newest one wraps; the ones from the lowest on open. A wrapped branch key tells its version in clear,
so whoever keeps it knows what there is to do without asking. The life of a version: `rotate` makes
it, `rewrap` moves branch keys on to it, `retire` destroys the ones before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cryptography import x509

from sealward.seal.context import EncryptionContext
from services.keys.profiles import Profile

State = Literal["ready", "degraded", "sealed"]
"""`ready`; `degraded` = only what is leased serves; `sealed` = nothing does."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How a provider is. `trouble`: what keeps it from being ready, of a closed set; else empty.

    `since`: when it last became ready, or ceased to be, seconds since the epoch, 0 = not known.
    """

    state: State
    trouble: str = ""
    since: float = 0.0


MAX_REWRAP = 500
"""Wrapped keys in one call of `rewrap`."""


@dataclass(frozen=True, slots=True)
class Versions:
    """What there is of a key-encryption key: the lowest version that opens, and the newest.

    `made`: when each of them was made, lowest first, seconds since the epoch, 0 = not known.
    """

    lowest: int
    newest: int
    made: tuple[int, ...]


class BranchKeys(Protocol):
    """Makes and opens branch keys under key-encryption keys that never leave the provider."""

    name: str
    """`embedded` or `vault`."""
    single_host: bool
    """True when keys and data live on one machine."""

    def condition(self) -> Condition:
        """Say how the provider is now; asks nobody."""

    def create(self, context: EncryptionContext) -> tuple[bytes, bytes]:
        """Make a branch key; return it (32 bytes) and its wrapped form."""

    def open(self, context: EncryptionContext, wrapped: bytes) -> bytes:
        """Open a wrapped branch key that was made for exactly this context."""

    def version_of(self, wrapped: bytes) -> int:
        """Tell which version a wrapped key is under, without opening it and without the provider.

        It is what the wrapped key says in clear; that it opens is not shown by it. Raises
        SEAL_BROKEN for what is no wrapped key of this provider.
        """

    def names(self) -> list[tuple[str, str]]:
        """Return tenant and purpose of every key-encryption key that there is, sorted."""

    def versions(self, tenant: str, purpose: str) -> Versions:
        """Return the versions of a key-encryption key; raise NOT_FOUND."""

    def rotate(self, tenant: str, purpose: str) -> int:
        """Make a new version and return its number; raise NOT_FOUND.

        It is durable before this returns. Branch keys made from now on are under it, in this and
        every other process; those under older versions go on opening.
        """

    def rewrap(self, items: Sequence[tuple[EncryptionContext, bytes]]) -> list[bytes | None]:
        """Wrap branch keys anew, under the newest version; the keys stay what they are.

        At most MAX_REWRAP items, of any tenants and purposes. The answer has one place for each
        item: the new wrapped key (the same bytes where it was under the newest version already), or
        None where it does not open. Old wrapped keys open until their version is retired.
        """

    def retire(self, tenant: str, purpose: str, below: int) -> None:
        """Destroy the versions before `below` for good; what is wrapped under them never opens.

        Doing it again changes nothing. Raises NOT_FOUND, and FIELD_INVALID where `below` is above
        the newest version: that one is not destroyed here.
        """


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate: leaf and intermediates as PEM, serial number, end of life (epoch seconds).

    Leaves are dated a minute back: their holders count their life from a minute after `not before`.
    """

    chain_pem: bytes
    serial: int
    not_after: int


AuthorityState = Literal["next", "issuing", "leaving"]


@dataclass(frozen=True, slots=True)
class TrustedAuthority:
    """An authority of the trust bundle: its certificate (PEM), and where it stands.

    `next` is trusted and signs nothing yet, `issuing` signs, `leaving` signs nothing any more.
    """

    certificate_pem: bytes
    state: AuthorityState


class CertificateAuthority(Protocol):
    """Signs certificates with names that the service decided on.

    An authority is replaced in three steps, so that nobody meets a certificate of an authority that
    they do not trust: `announce` the next one, `adopt` it once everybody has the bundle, `drop` the
    old one once everybody has a certificate of the new one. When to take which step is not decided
    here. Each step is durable when it returns, and one that is done already changes nothing, so it
    may be taken again after a crash.
    """

    @property
    def bundle_pem(self) -> bytes:
        """The certificates to trust, PEM; several while an authority is replaced.

        The first is what the chains that are issued now end in: by it every holder of a certificate
        sees whether its own one is of the authority that signs. The same authorities are the same
        bytes: holders are compared by them.
        """

    def authorities(self) -> list[TrustedAuthority]:
        """Return the authorities of the bundle in its order: `issuing`, then the others."""

    def issue(self, profile: Profile, request: x509.CertificateSigningRequest) -> Issued:
        """Sign the request's public key under the names of the profile and no others."""

    def announce(self) -> None:
        """Make the next authority and put it into the bundle, unless there is one."""

    def adopt(self) -> None:
        """Sign with the next authority, if there is one; the one that signed is leaving."""

    def drop(self) -> None:
        """Trust those that are leaving no more, and destroy their keys."""
