"""What is keyed on its way into the log: pseudonyms, digests, fingerprints.

Bare hashes of small inputs, of a patient number above all, can be guessed by trying. Under a key
that only this service opens they cannot, and stay equal for equal inputs, which is what an index
needs. HMAC-SHA256 (RFC 2104) truncated to 128 bits, each purpose under a key of its own:
HKDF-SHA256(index key, info "sealward/audit-index/v1").

Fingerprints are compared within this service and mean nothing outside: keyed BLAKE2b (RFC 7693),
which costs a third.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b, sha256

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealward.seal.secret import Secret

_INFO = b"sealward/audit-index/v1"
_BYTES = 16

KEYED_DIGITS = 2 * _BYTES
"""Hex digits of a pseudonym and of a keyed digest."""


class Hmac:
    """HMAC-SHA256 under one key of at most 64 bytes. `hmac.digest` sets its key up on each call."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(64, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in padded))

    def digest(self, data: bytes) -> bytes:
        """Return the code of `data`, 32 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()


class IndexKeys:
    """The keyed functions. `use` returns the index key while its lease lasts and raises after it.

    Whoever uses them calls `check` first, once a batch.
    """

    def __init__(self, use: Callable[[], bytes]) -> None:
        self._use = use
        material = HKDF(hashes.SHA256(), 96, salt=None, info=_INFO).derive(use())
        self._patient, self._digest = Hmac(material[:32]), Hmac(material[32:64])
        self._print = Secret(material[64:])

    def check(self) -> None:
        """Raise SealwardError KEYS_UNAVAILABLE when the lease of the index key has run out."""
        self._use()

    def pseudonym(self, reference: str) -> str:
        """Return the pseudonym of a patient reference: 32 hex digits."""
        return self._patient.digest(reference.encode())[:_BYTES].hex()

    def digest(self, digest: bytes) -> str:
        """Return the keyed form of a message digest: 32 hex digits."""
        return self._digest.digest(digest)[:_BYTES].hex()

    def fingerprint(self, data: bytes) -> bytes:
        """Return 16 bytes that are equal for equal data and tell nothing else about it."""
        return blake2b(data, key=self._print.reveal(), digest_size=_BYTES).digest()
