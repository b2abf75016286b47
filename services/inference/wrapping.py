"""The wrapped keys of the sealed packages, as they move on (sealward.kit.holding)."""

from __future__ import annotations

from collections.abc import Sequence

from sealward.kit.errors import SealwardError
from sealward.kit.holding import Rewrap, WrappedKey, changed
from sealward.kit.reasons import Reason
from services.inference.package import DEFAULT_TENANT, PURPOSE, context_of
from services.inference.store import ModelStore


class PackageKeys:
    """Holder of the keys of one store's packages. A place is `name@version`."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def places(self, tenant: str, purpose: str) -> Sequence[str]:
        """See Holder."""
        if (tenant, purpose) != (DEFAULT_TENANT, PURPOSE):
            return ()
        with self._store.wrapping:
            return [f"{name}@{version}" for name, version in self._store.list()]

    def rewrap(self, places: Sequence[str], rewrap: Rewrap) -> tuple[int, list[str]]:
        """See Holder. A reader has the old wrapped key or the new one; both open for now."""
        with self._store.wrapping:
            keys, there = [], []
            try:
                for place in places:
                    name, _, version = place.partition("@")
                    wrapped = self._store.wrapped(name, version)
                    if wrapped is not None:
                        keys.append(WrappedKey(context_of(name, version), wrapped))
                        there.append(place)
                new, failed = changed(keys, there, rewrap)
                for place, wrapped in new:
                    name, _, version = place.partition("@")
                    self._store.replace_wrapped(name, version, wrapped)
            except OSError:
                raise SealwardError(
                    Reason.KEYSTORE_UNAVAILABLE, "a wrapped key cannot be read or written",
                    retry_after=1.0,
                ) from None  # fmt: skip
        return len(new), failed
