"""Shows that a Vault is the one that a data folder began with.

A data key of the deployment, wrapped under a Transit key that belongs to no tenant and is never
rotated. Nothing is sealed with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sealward.kit.errors import StartupError
from sealward.seal.context import EncryptionContext
from services.keys.providers.vault.names import CANARY, derivation_context
from services.keys.providers.vault.session import VaultSession
from services.keys.providers.vault.troubles import RefusedError
from services.keys.providers.vault.wire import Answer


class Canary:
    """Raises StartupError where it is another one, KEYSTORE_UNAVAILABLE where none answers."""

    def __init__(self, session: VaultSession, deployment: str) -> None:
        self._session = session
        self._names = session.config.names
        context = EncryptionContext("default", CANARY, deployment)
        self._context = derivation_context(context)

    def make(self) -> str:
        """Return a wrapped key."""
        transit, names = self._session.api.transit, self._names
        with self._right():
            transit.create_key(
                CANARY, derived=True, key_type="aes256-gcm96", mount_point=names.transit
            )
            answer: Answer = transit.generate_data_key(
                CANARY, "plaintext", context=self._context, mount_point=names.transit
            )
        return str(answer.data.get("ciphertext"))

    def check(self, wrapped: str) -> None:
        """Open it."""
        with self._right():
            self._session.api.transit.decrypt_data(
                CANARY, wrapped, context=self._context, mount_point=self._names.transit
            )

    @contextmanager
    def _right(self) -> Iterator[None]:
        try:
            yield
        except RefusedError:
            raise StartupError(
                f"the Vault at {self._session.wire.address} does not hold the keys of this folder:"
                " it is another one, or its engines were made anew"
            ) from None
