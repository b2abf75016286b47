"""What is keyed on its way into the log: pseudonyms, digests, fingerprints.

Bare hashes of small inputs, of a patient number above all, can be guessed by trying. Under a key
that only this service opens they cannot, and stay equal for equal inputs, which is what an index
needs. HMAC-SHA256 (RFC 2104) truncated to 128 bits, each purpose under a key of its own:
HKDF-SHA256(index key, info "sealward/audit-index/v1").
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_INFO = b"sealward/audit-index/v1"
_BYTES = 16


class IndexKeys:
    """The keyed functions. `use` returns the index key while its lease lasts and raises after it.

    Whoever uses them calls `check` first, once a batch.
    """

    def __init__(self, use: Callable[[], bytes]) -> None:
        self._use = use
        material = HKDF(hashes.SHA256(), 96, salt=None, info=_INFO).derive(use())
        self._patient, self._digest, self._print = (
            material[:32], material[32:64], material[64:],
        )  # fmt: skip

    def check(self) -> None:
        """Raise SealwardError KEYS_UNAVAILABLE when the lease of the index key has run out."""
        self._use()

    def pseudonym(self, reference: str) -> str:
        """Return the pseudonym of a patient reference: 32 hex digits."""
        return hmac.digest(self._patient, reference.encode(), "sha256")[:_BYTES].hex()

    def digest(self, digest: bytes) -> str:
        """Return the keyed form of a message digest: 32 hex digits."""
        return hmac.digest(self._digest, digest, "sha256")[:_BYTES].hex()

    def fingerprint(self, data: bytes) -> bytes:
        """Return 16 bytes that are equal for equal data and tell nothing else about it."""
        return hmac.digest(self._print, data, "sha256")[:_BYTES]
