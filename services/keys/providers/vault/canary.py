"""Shows that a Vault is the one that a data folder began with.

A data key of the deployment, wrapped under a Transit key that belongs to no tenant and is never
rotated. Nothing is sealed with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sealward.kit.errors import StartupError
from sealward.seal.context import EncryptionContext
from services.keys.providers.vault.names import CANARY, derivation_context
from services.keys.providers.vault.session import VaultSession
from services.keys.providers.vault.troubles import RefusedError


class Canary:
    """Raises StartupError where it is another one, KEYSTORE_UNAVAILABLE where none answers."""

    def __init__(self, session: VaultSession, deployment: str) -> None:
        self._session = session
        self._names = session.config.names
        context = EncryptionContext("default", CANARY, deployment)
        self._context = derivation_context(context)

    def make(self) -> str:
        """Return a wrapped key."""
        key = {"type": "aes256-gcm96", "derived": True}
        self._ask(self._names.key(CANARY), key)
        body = {"context": self._context}
        return str(self._ask(f"{self._names.transit}/datakey/plaintext/{CANARY}", body))

    def check(self, wrapped: str) -> None:
        """Open it."""
        body = {"context": self._context, "ciphertext": wrapped}
        self._ask(f"{self._names.transit}/decrypt/{CANARY}", body)

    def _ask(self, path: str, body: Mapping[str, object]) -> object:
        try:
            return self._session.call("post", path, body).data.get("ciphertext")
        except RefusedError:
            raise StartupError(
                f"the Vault at {self._session.wire.address} does not hold the keys of this folder:"
                " it is another one, or its engines were made anew"
            ) from None
