"""Session values are sealed: who can write to the store can neither forge a session nor swap two.

One branch key serves all gateways of a deployment. Its wrapped form lies in the store beside what
it seals; opening it takes the keys service, under a lease. The context of each value holds the
token's hash. When another gateway has the key wrapped anew, the ring is told the
new form when it needs it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import redis
import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.holding import Rewrap, WrappedKey, changed
from sealward.kit.keysclient import BranchKey, KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from services.gateway.invalidation import STORE_ERRORS, store_unavailable

CONTEXT = EncryptionContext("default", "session", "gateway")
_SHELF = "sess-key:default"
# What the keys service says of bytes that are no key: they do not open, were destroyed, or have no
# key's length.
_NO_KEY = frozenset({Reason.SEAL_BROKEN, Reason.KEY_DESTROYED, Reason.FIELD_INVALID})


class SessionSealer:
    """Seals and opens session values (sessions.Sealer). Thread-safe."""

    def __init__(
        self,
        pool: redis.ConnectionPool,
        ring: KeyRing,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._redis = redis.Redis(connection_pool=pool)
        self._ring = ring
        self._log = log
        self._lock = threading.Lock()
        self._key: BranchKey | None = None
        self._checked = False

    def seal(self, plaintext: bytes, name: str) -> bytes:
        """Seal; raise KEYS_UNAVAILABLE or SESSION_STORE_UNAVAILABLE."""
        return self.prepare().seal(plaintext, name)

    def open(self, sealed: bytes, name: str) -> bytes:
        """Open; raise SEAL_BROKEN, KEYS_UNAVAILABLE or SESSION_STORE_UNAVAILABLE."""
        return self.prepare().open(sealed, name)

    def recheck(self) -> None:
        """The store was away and may have forgotten the key: look again before the next use."""
        self._checked = False

    # --- sealward.kit.holding.Holder ----------------------------------------------------------

    def places(self, tenant: str, purpose: str) -> Sequence[str]:
        """See Holder: there is one place."""
        if (tenant, purpose) != (CONTEXT.tenant, CONTEXT.purpose):
            return ()
        with self._lock:
            return () if self._shelved() is None else (_SHELF,)

    def rewrap(self, places: Sequence[str], rewrap: Rewrap) -> tuple[int, list[str]]:
        """See Holder. Raise SESSION_STORE_UNAVAILABLE or KEYS_UNAVAILABLE."""
        with self._lock:
            shelved = self._shelved()
            if shelved is None:
                return 0, []
            new, failed = changed([WrappedKey(CONTEXT, shelved)], places, rewrap)
            for _, wrapped in new:
                if self._exchange(shelved, wrapped):
                    self._ring.moved(shelved, wrapped)
            return len(new), failed

    def _exchange(self, old: bytes, new: bytes) -> bool:
        """Replace what is shelved unless somebody else has; then theirs is as new as ours."""
        try:
            with self._redis.pipeline() as pipe:
                pipe.watch(_SHELF)  # type: ignore[no-untyped-call]
                if pipe.get(_SHELF) != old:
                    return False
                pipe.multi()
                pipe.set(_SHELF, new)
                pipe.execute()
        except redis.WatchError:
            return False
        except STORE_ERRORS:
            raise store_unavailable() from None
        return True

    def prepare(self) -> BranchKey:
        """Return the key in use, and agree with the other gateways on it first where needed."""
        key = self._key
        if key is not None and self._checked and not key.destroyed:
            return key
        with self._lock:
            if self._key is not None and self._key.destroyed:
                self._key.close()
                self._key = None
            if self._key is None or not self._checked:
                self._checked = True
                try:
                    self._key = self._agree(self._key)
                except BaseException:
                    self._checked = False
                    raise
            return self._key

    def _agree(self, mine: BranchKey | None) -> BranchKey:
        shelved = self._shelved()
        if shelved is None:
            mine = mine or self._ring.create(CONTEXT, kept=self._kept)
            shelved = self._shelve(mine.wrapped)
        if mine is not None and mine.wrapped == shelved:
            return mine
        try:
            found = self._ring.open(CONTEXT, shelved, kept=self._kept)
        except SealwardError as error:
            if error.reason not in _NO_KEY:
                raise
            return self._replace(mine)
        # Not before: while the other key cannot be opened ours may have to serve again.
        if mine is not None:
            mine.close()
        return found

    def _replace(self, mine: BranchKey | None) -> BranchKey:
        """Shelve our key, or a new one, where something lies that is no key of this deployment."""
        self._log.warning("sessions.key-replaced")
        key = mine or self._ring.create(CONTEXT, kept=self._kept)
        try:
            self._redis.set(_SHELF, key.wrapped)
        except STORE_ERRORS:
            if key is not mine:
                key.close()
            raise store_unavailable() from None
        return key

    def _kept(self) -> bytes | None:
        """What is kept now; None while the store is away."""
        try:
            return self._shelved()
        except SealwardError:
            return None

    def _shelved(self) -> bytes | None:
        try:
            return cast("bytes | None", self._redis.get(_SHELF))
        except STORE_ERRORS:
            raise store_unavailable() from None

    def _shelve(self, wrapped: bytes) -> bytes:
        """Keep our key unless another gateway was faster; return the one that is kept."""
        try:
            self._redis.set(_SHELF, wrapped, nx=True)
        except STORE_ERRORS:
            raise store_unavailable() from None
        return self._shelved() or wrapped
