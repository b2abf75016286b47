"""Branch keys under key-encryption keys in Transit: one a tenant and purpose, derived by context.

A wrapped branch key is Vault's own ciphertext, `vault:v<version>:<base64>`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.objects import KEY_BYTES
from services.keys.providers.base import MAX_REWRAP, Condition, Versions
from services.keys.providers.vault.names import derivation_context, kek_name, read_kek_name
from services.keys.providers.vault.session import VaultSession
from services.keys.providers.vault.shredder import Shredder
from services.keys.providers.vault.troubles import RefusedError
from services.keys.providers.vault.wire import Answer

_WRAPPED = re.compile(rb"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/]{16,2048}={0,2}")
_NO_KEY = "key not found"
_KEK = {
    "type": "aes256-gcm96", "derived": True, "exportable": False, "allow_plaintext_backup": False,
    "convergent_encryption": False,
}  # fmt: skip
"""What a key-encryption key must be: without derivation it would open under any context."""
_NOT_FOUND = 404
_BAD_REQUEST = 400


class VaultBranchKeys:
    """BranchKeys over Transit. Thread-safe."""

    name = "vault"

    def __init__(self, session: VaultSession, shredder: Shredder) -> None:
        self._session = session
        self._transit = session.api.transit
        self._mount = session.config.names.transit
        self._shredder = shredder
        self._seen: set[str] = set()
        self.single_host = session.config.target.single_host

    def condition(self) -> Condition:
        """The condition of the session with Vault."""
        return self._session.condition()

    def create(self, context: EncryptionContext) -> tuple[bytes, bytes]:
        """Make a branch key under the newest version; raise KEYSTORE_UNAVAILABLE."""
        name = kek_name(context.tenant, context.purpose)
        if not self._known(name):
            self._make_kek(name)
        try:
            answer: Answer = self._transit.generate_data_key(
                name, "plaintext", context=derivation_context(context), mount_point=self._mount
            )
        except RefusedError:
            self._seen.discard(name)
            raise _failing() from None
        data = answer.data
        key, wrapped = _decode(data.get("plaintext")), str(data.get("ciphertext")).encode()
        if len(key) != KEY_BYTES or not _WRAPPED.fullmatch(wrapped):
            raise _failing()
        return key, wrapped

    def open(self, context: EncryptionContext, wrapped: bytes) -> bytes:
        """Open a wrapped branch key; raise SEAL_BROKEN or KEYSTORE_UNAVAILABLE."""
        self.version_of(wrapped)
        name = kek_name(context.tenant, context.purpose)
        if not self._known(name):
            raise _broken()
        try:
            answer: Answer = self._transit.decrypt_data(
                name,
                wrapped.decode("ascii"),
                context=derivation_context(context),
                mount_point=self._mount,
            )
        except RefusedError as error:
            raise _refused(error) from None
        key = _decode(answer.data.get("plaintext"))
        if len(key) != KEY_BYTES:
            raise _broken()
        return key

    def version_of(self, wrapped: bytes) -> int:
        """Tell the version that a wrapped key names; raise SEAL_BROKEN."""
        found = _WRAPPED.fullmatch(wrapped)
        if found is None:
            raise _broken()
        return int(found[1])

    def names(self) -> list[tuple[str, str]]:
        """Return tenant and purpose of every key-encryption key, sorted."""
        try:
            answer: Answer = self._transit.list_keys(mount_point=self._mount)
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                return []
            raise _failing() from None
        listed = answer.data.get("keys") or []
        if not isinstance(listed, list):
            raise _failing()
        found = (read_kek_name(str(name)) for name in listed)
        return sorted(name for name in found if name is not None)

    def versions(self, tenant: str, purpose: str) -> Versions:
        """Return the versions of a key-encryption key; raise NOT_FOUND."""
        try:
            answer: Answer = self._transit.read_key(
                kek_name(tenant, purpose), mount_point=self._mount
            )
        except RefusedError as error:
            raise _missing(error) from None
        made = answer.data.get("keys")
        if not isinstance(made, dict) or not made:
            raise _failing()
        # Vault lists the versions that open.
        try:
            times = {int(version): int(when) for version, when in made.items()}
        except (ValueError, TypeError, OverflowError):
            raise _failing() from None
        return Versions(min(times), max(times), tuple(times[at] for at in sorted(times)))

    def rotate(self, tenant: str, purpose: str) -> int:
        """Make a new version; raise NOT_FOUND or KEYSTORE_UNAVAILABLE."""
        before = self.versions(tenant, purpose).newest
        try:
            self._session.once.transit.rotate_key(
                kek_name(tenant, purpose), mount_point=self._mount
            )
        except RefusedError as error:
            raise _missing(error) from None
        newest = self.versions(tenant, purpose).newest
        if newest <= before:
            raise _failing()
        return newest

    def rewrap(self, items: Sequence[tuple[EncryptionContext, bytes]]) -> list[bytes | None]:
        """Wrap branch keys under the newest version; None for one that does not open."""
        if len(items) > MAX_REWRAP:
            raise SealwardError(
                Reason.FIELD_INVALID, f"at most {MAX_REWRAP} wrapped keys at a time", field="items"
            )
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for at, (context, wrapped) in enumerate(items):
            if _WRAPPED.fullmatch(wrapped):
                groups[context.tenant, context.purpose].append(at)
        result: list[bytes | None] = [None] * len(items)
        for (tenant, purpose), places in groups.items():
            batch = [
                {
                    "context": derivation_context(items[at][0]),
                    "ciphertext": items[at][1].decode("ascii"),
                }
                for at in places
            ]
            for at, found in zip(places, self._rewrapped(tenant, purpose, batch), strict=True):
                result[at] = self._newer(items[at][1], found)
        return result

    def retire(self, tenant: str, purpose: str, below: int) -> None:
        """Destroy the versions before `below`; raise NOT_FOUND or FIELD_INVALID.

        The service's own login may not: it takes the shredder's, for this call alone.
        """
        found = self.versions(tenant, purpose)
        if below > found.newest:
            raise SealwardError(
                Reason.FIELD_INVALID, "the newest version is not retired", field="below"
            )
        if below > found.lowest:
            self._shredder.retire(kek_name(tenant, purpose), below)

    # --- details -----------------------------------------------------------------------------

    def _known(self, name: str) -> bool:
        """True when there is such a key; False when not. Raise where it is not what it must be."""
        if name in self._seen:
            return True
        try:
            answer: Answer = self._transit.read_key(name, mount_point=self._mount)
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                return False
            raise _failing() from None
        if any(answer.data.get(option) != value for option, value in _KEK.items()):
            raise SealwardError(
                Reason.KEYSTORE_UNAVAILABLE,
                "a key-encryption key in Vault is not derived, or may be exported: it is not used",
            )
        self._seen.add(name)
        return True

    def _make_kek(self, name: str) -> None:
        """Make a key-encryption key; that another process has made it meanwhile is fine."""
        try:
            self._transit.create_key(
                name, derived=True, key_type="aes256-gcm96", mount_point=self._mount
            )
        except RefusedError:
            raise _failing() from None
        if not self._known(name):
            raise _failing()

    def _rewrapped(
        self, tenant: str, purpose: str, batch: list[dict[str, str]]
    ) -> list[Mapping[str, Any]]:
        """Rewrap one key's batch. Newer servers answer 400 with good and bad results together."""
        # Not hvac's method, which sends a ciphertext beside the batch: our policy allows none.
        path = f"/v1/{self._mount}/rewrap/{kek_name(tenant, purpose)}"
        try:
            answer: Answer = self._session.api.adapter.post(path, json={"batch_input": batch})
            results = answer.data.get("batch_results")
        except RefusedError as error:
            if error.says(_NO_KEY):
                return [{} for _ in batch]
            results = error.data.get("batch_results")
        if not isinstance(results, list) or len(results) != len(batch):
            raise _failing()
        return [result if isinstance(result, dict) else {} for result in results]

    def _newer(self, before: bytes, found: Mapping[str, Any]) -> bytes | None:
        after = str(found.get("ciphertext") or "").encode()
        if found.get("error") or not _WRAPPED.fullmatch(after):
            return None
        # Wrapped under the newest version already: Vault wraps it once more, we keep what it was.
        return before if self.version_of(after) == self.version_of(before) else after


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (ValueError, binascii.Error):
        return b""


def _refused(error: RefusedError) -> SealwardError:
    """What Vault refuses to decrypt is broken, destroyed or of another context; say one thing."""
    return _broken() if error.status == _BAD_REQUEST and error.errors else _failing()


def _missing(error: RefusedError) -> SealwardError:
    if error.status == _NOT_FOUND or error.says(_NO_KEY):
        return SealwardError(Reason.NOT_FOUND, "there is no such key-encryption key")
    return _failing()


def _broken() -> SealwardError:
    return SealwardError(Reason.SEAL_BROKEN, "the wrapped key does not open")


def _failing() -> SealwardError:
    return SealwardError(
        Reason.KEYSTORE_UNAVAILABLE, "Vault gave an answer that cannot be used", retry_after=1.0
    )
