"""A file of the gateway with a branch key of its own, whose wrapped form lies in the file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence

from sealward.kit.errors import SealwardError
from sealward.kit.holding import Rewrap, WrappedKey, changed
from sealward.kit.keysclient import BranchKey, KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext


class KeyedFile:
    """The key in the table `key` (one row: id 1, wrapped) of a database. A holding.Holder.

    Thread-safe. Opening the key takes the keys service, under a lease: sealing and opening raise
    KEYS_UNAVAILABLE and SEAL_BROKEN.
    """

    def __init__(
        self, db: sqlite3.Connection, ring: KeyRing, context: EncryptionContext, place: str
    ) -> None:
        self._db = db
        self._ring = ring
        self._context = context
        self._place = place
        self._lock = threading.RLock()
        self._key: BranchKey | None = None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def places(self, tenant: str, purpose: str) -> Sequence[str]:
        """See Holder: there is one place."""
        if (tenant, purpose) != (self._context.tenant, self._context.purpose):
            return ()
        with self._lock:
            return () if self._wrapped() is None else (self._place,)

    def rewrap(self, places: Sequence[str], rewrap: Rewrap) -> tuple[int, list[str]]:
        """See Holder."""
        with self._lock:
            old = self._wrapped()
            if old is None:
                return 0, []
            new, failed = changed([WrappedKey(self._context, old)], places, rewrap)
            for _, wrapped in new:
                self._db.execute("UPDATE key SET wrapped = ?", (wrapped,))
                self._ring.moved(old, wrapped)
            return len(new), failed

    def _branch_key(self) -> BranchKey:
        with self._lock:
            if self._key is None:
                wrapped = self._wrapped()
                if wrapped is None:
                    self._key = self._ring.create(self._context, kept=self._wrapped)
                    self._db.execute(
                        "INSERT INTO key (id, wrapped) VALUES (1, ?)", (self._key.wrapped,)
                    )
                else:
                    self._key = self._ring.open(self._context, wrapped, kept=self._wrapped)
            return self._key

    def _sealing_key(self) -> BranchKey:
        """Return the key, or a new one in the place of one that was destroyed on purpose.

        What the old one sealed does not open.
        """
        with self._lock:
            try:
                key = self._branch_key()
            except SealwardError as error:
                if error.reason is not Reason.KEY_DESTROYED:
                    raise
                key = None
            if key is not None and not key.destroyed:
                return key
            if key is not None:
                key.close()
            self._key = self._ring.create(self._context, kept=self._wrapped)
            self._db.execute("UPDATE key SET wrapped = ?", (self._key.wrapped,))
            return self._key

    def _wrapped(self) -> bytes | None:
        with self._lock:
            row = self._db.execute("SELECT wrapped FROM key").fetchone()
        return None if row is None else bytes(row[0])
