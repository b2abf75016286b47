"""The embedded provider: key-encryption keys in the sealed keystore of this machine."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Sequence

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.seal.context import KEY_SCHEMA, EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.header import key_name_of
from sealward.seal.objects import KEY_BYTES, ObjectSealer
from services.keys.keystore import Keystore
from services.keys.keystoreformat import Kek
from services.keys.providers.base import MAX_REWRAP, Condition, Versions

_NAME = re.compile(r"kek/([^/]+)/([^/]+)/([1-9][0-9]{0,8})")


class EmbeddedBranchKeys:
    """BranchKeys over a keystore. A wrapped branch key is an AWS Encryption SDK message.

    The message names its key, `kek/<tenant>/<purpose>/<version>`, in clear.
    """

    name = "embedded"
    single_host = True

    def __init__(self, keystore: Keystore) -> None:
        self._keystore = keystore
        self._lock = threading.Lock()
        self._sealers: dict[tuple[str, str, int], ObjectSealer] = {}

    def condition(self) -> Condition:
        """An open keystore is ready."""
        return Condition("ready")

    def create(self, context: EncryptionContext) -> tuple[bytes, bytes]:
        """Make a branch key under the newest key-encryption key; raise KEYSTORE_UNAVAILABLE."""
        newest = self._keystore.ensure_kek(context.tenant, context.purpose)[-1]
        key = secrets.token_bytes(KEY_BYTES)
        return key, self._sealer(context, newest).seal(context, key)

    def open(self, context: EncryptionContext, wrapped: bytes) -> bytes:
        """Open a wrapped branch key; raise SEAL_BROKEN."""
        tenant, purpose, version = _read_name(wrapped)
        if (tenant, purpose) != (context.tenant, context.purpose):
            raise _broken()
        for kek in self._keystore.keks(tenant, purpose):
            if kek.version == version:
                try:
                    key = self._sealer(context, kek).open(context, wrapped)
                except SealBrokenError:
                    break
                if len(key) == KEY_BYTES:
                    return key
        raise _broken()

    def version_of(self, wrapped: bytes) -> int:
        """Tell the version that a wrapped key names; raise SEAL_BROKEN."""
        return _read_name(wrapped)[2]

    def names(self) -> list[tuple[str, str]]:
        """Return tenant and purpose of every key-encryption key, sorted."""
        return self._keystore.kek_names()

    def versions(self, tenant: str, purpose: str) -> Versions:
        """Return the versions of a key-encryption key; raise NOT_FOUND."""
        keks = self._keystore.keks(tenant, purpose)
        if not keks:
            raise _unknown()
        return Versions(keks[0].version, keks[-1].version, tuple(kek.made for kek in keks))

    def rotate(self, tenant: str, purpose: str) -> int:
        """Make a new version; raise NOT_FOUND or KEYSTORE_UNAVAILABLE."""
        made = self._keystore.add_kek(tenant, purpose)
        if made is None:
            raise _unknown()
        return made.version

    def rewrap(self, items: Sequence[tuple[EncryptionContext, bytes]]) -> list[bytes | None]:
        """Wrap branch keys under the newest version; None for one that does not open."""
        if len(items) > MAX_REWRAP:
            raise SealwardError(
                Reason.FIELD_INVALID, f"at most {MAX_REWRAP} wrapped keys at a time", field="items"
            )
        return [self._rewrap(context, wrapped) for context, wrapped in items]

    def retire(self, tenant: str, purpose: str, below: int) -> None:
        """Destroy the versions before `below`; raise as the interface says.

        The sealed file is replaced by one without them; in a copy of the file they live on.
        """
        if below > self.versions(tenant, purpose).newest:
            raise SealwardError(
                Reason.FIELD_INVALID, "the newest version is not retired", field="below"
            )
        self._keystore.drop_keks(tenant, purpose, below)
        with self._lock:
            for name in [n for n in self._sealers if n[:2] == (tenant, purpose) and n[2] < below]:
                del self._sealers[name]

    def _rewrap(self, context: EncryptionContext, wrapped: bytes) -> bytes | None:
        try:
            key = self.open(context, wrapped)
        except SealwardError:
            return None
        newest = self._keystore.keks(context.tenant, context.purpose)[-1]
        if _read_name(wrapped)[2] == newest.version:
            return wrapped
        return self._sealer(context, newest).seal(context, key)

    def _sealer(self, context: EncryptionContext, kek: Kek) -> ObjectSealer:
        name = (context.tenant, context.purpose, kek.version)
        with self._lock:
            sealer = self._sealers.get(name)
            if sealer is None:
                sealer = ObjectSealer(
                    kek.key.reveal(), key_name="kek/{}/{}/{}".format(*name), schema=KEY_SCHEMA
                )
                self._sealers[name] = sealer
            return sealer


def _read_name(wrapped: bytes) -> tuple[str, str, int]:
    """Return tenant, purpose and version that a wrapped key names; raise SEAL_BROKEN."""
    try:
        found = _NAME.fullmatch(key_name_of(wrapped))
    except SealBrokenError:
        found = None
    if found is None:
        raise _broken()
    return found[1], found[2], int(found[3])


def _broken() -> SealwardError:
    return SealwardError(Reason.SEAL_BROKEN, "the wrapped key does not open")


def _unknown() -> SealwardError:
    return SealwardError(Reason.NOT_FOUND, "there is no key of this tenant and purpose")
