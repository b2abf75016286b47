"""Branch keys without a keys service: KeyRing's other side, for units that seal."""

from __future__ import annotations

import hashlib
import secrets

from sealward.kit.errors import SealwardError
from sealward.kit.keysclient import KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.lease import Lease

LEASE = Lease(600, 900, 1 << 20, 1 << 30)


class LocalSource:
    """Keys follow from wrapped form and context, so that they outlive a process."""

    def __init__(self) -> None:
        self.down = False

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Lease]:
        wrapped = secrets.token_bytes(32)
        key, lease = self.open(context, wrapped, timeout)
        return key, wrapped, lease

    def open(
        self, context: EncryptionContext, wrapped: bytes, _timeout: float
    ) -> tuple[bytes, Lease]:
        if self.down:
            raise SealwardError(Reason.KEYS_UNAVAILABLE, "down", retry_after=1.0)
        return hashlib.sha256(repr(context).encode() + wrapped).digest(), LEASE


def local_ring() -> KeyRing:
    return KeyRing(LocalSource())
