"""The embedded provider: key-encryption keys in the sealed keystore of this machine."""

from __future__ import annotations

import secrets

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.seal.context import KEY_SCHEMA, EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import KEY_BYTES, ObjectSealer
from services.keys.keystore import Keystore
from services.keys.providers.base import State


class EmbeddedBranchKeys:
    """BranchKeys over a keystore. A wrapped branch key is an AWS Encryption SDK message."""

    name = "embedded"
    single_host = True

    def __init__(self, keystore: Keystore) -> None:
        self._keystore = keystore
        self._sealers: dict[bytes, ObjectSealer] = {}

    def state(self) -> State:
        """An open keystore is ready."""
        return "ready"

    def create(self, context: EncryptionContext) -> tuple[bytes, bytes]:
        """Make a branch key under the newest key-encryption key; raise KEYSTORE_UNAVAILABLE."""
        keks = self._keystore.ensure_kek(context.tenant, context.purpose)
        key = secrets.token_bytes(KEY_BYTES)
        return key, self._sealer(context, len(keks), keks[-1]).seal(context, key)

    def open(self, context: EncryptionContext, wrapped: bytes) -> bytes:
        """Open a wrapped branch key; raise SEAL_BROKEN."""
        keks = self._keystore.keks(context.tenant, context.purpose)
        for version in range(len(keks), 0, -1):
            try:
                key = self._sealer(context, version, keks[version - 1]).open(context, wrapped)
            except SealBrokenError:
                continue
            if len(key) == KEY_BYTES:
                return key
        raise SealwardError(Reason.SEAL_BROKEN, "the wrapped key does not open")

    def _sealer(self, context: EncryptionContext, version: int, kek: bytes) -> ObjectSealer:
        sealer = self._sealers.get(kek)
        if sealer is None:
            name = f"kek/{context.tenant}/{context.purpose}/{version}"
            sealer = self._sealers[kek] = ObjectSealer(kek, key_name=name, schema=KEY_SCHEMA)
        return sealer
