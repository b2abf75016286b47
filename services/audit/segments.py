"""Segments: runs of entries that are sealed under one branch key and can be destroyed together.

A segment ends after 2^20 entries (the bound on a key with random nonces) or with the process: a
start begins a new one, so that no count has to survive a crash. The wrapped key is in the store
before the first entry under it; nobody lists wrapped keys in between (`wrapping`).
Within a segment the branch key's lease is renewed by the key ring; past its hard limit nothing is
sealed or opened until the keys service answers again.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.entries import (
    MAX_ENTRIES,
    SEGMENT_ID_BYTES,
    EntryOpener,
    EntrySealer,
    segment_of,
)
from sealward.seal.errors import SealBrokenError
from sealward.tlog.leaf import EVENT_ID_SIZE
from services.audit.store import LogStore

_OPENERS = 64
SEGMENT = "segment/"
"""What the names of the segments' wrapped keys begin with, in a log's store."""


class BranchKey(Protocol):
    """A branch key under a lease (sealward.kit.keysclient.BranchKey)."""

    @property
    def wrapped(self) -> bytes:
        """The wrapped key."""

    def use(self, size: int = 0, messages: int = 1) -> bytes:
        """Count a use and return the key; raise SealwardError KEYS_UNAVAILABLE."""

    def close(self) -> None:
        """Forget the key."""


class KeyRing(Protocol):
    """Where branch keys come from (sealward.kit.keysclient.KeyRing). Raises SealwardError."""

    def create(self, context: EncryptionContext) -> BranchKey:
        """Make a branch key."""

    def open(self, context: EncryptionContext, wrapped: bytes) -> BranchKey:
        """Open a wrapped branch key."""


class _Current:
    """The segment that is being written."""

    def __init__(self, branch: BranchKey, segment_id: bytes, origin: str, most: int) -> None:
        self.branch = branch
        self.left = most
        self.sealer = EntrySealer(branch.use(), segment_id, origin)


class Segments:
    """Seals and opens the entries of one log, under keys of its tenant.

    `seal_all` is for the one thread that writes at a time; `open` is thread-safe. `entries` bounds
    the entries of a segment.
    """

    def __init__(
        self,
        store: LogStore,
        ring: KeyRing,
        origin: str,
        *,
        tenant: str = "default",
        entries: int = MAX_ENTRIES,
        wrapping: threading.Lock | None = None,
    ) -> None:
        self._context = EncryptionContext(tenant, "audit-segment", "new")
        self._store = store
        self._ring = ring
        self._origin = origin
        self._entries = min(entries, MAX_ENTRIES)
        self._current: _Current | None = None
        self._lock = threading.Lock()
        self._wrapping = wrapping or threading.Lock()
        self._openers: OrderedDict[bytes, tuple[BranchKey, EntryOpener]] = OrderedDict()
        # What puts patient references into an opened span (services.audit.patients).
        self.reveal: Callable[[bytes, bytes], bytes] = lambda _event_id, span: span

    def begin(self) -> None:
        """Begin a segment; raise SealwardError KEYS_UNAVAILABLE or StoreError."""
        segment_id = secrets.token_bytes(SEGMENT_ID_BYTES)
        with self._wrapping:
            branch = self._ring.create(self._context.about(segment_id.hex()))
            self._store.put([(_name(segment_id), branch.wrapped)])
        old, self._current = (
            self._current,
            _Current(branch, segment_id, self._origin, self._entries),
        )
        if old is not None:
            old.branch.close()

    def seal_all(self, entries: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        """Seal (prefix, plaintext) pairs; raise SealwardError KEYS_UNAVAILABLE or StoreError."""
        current = self._current
        if current is None or current.left < len(entries):
            self.begin()
            current = self._current
            if current is None or current.left < len(entries):
                raise ValueError("a batch is larger than a segment")
        # The lease is asked before every batch: what was derived from the key ends with it.
        current.branch.use(sum([len(text) for _, text in entries]), len(entries))
        current.left -= len(entries)
        return current.sealer.seal_all(entries)

    def open(self, prefix: bytes, sealed: bytes) -> bytes:
        """Open one sealed entry, and the patient reference in it; raise as `open_as_it_is`."""
        span = self.open_as_it_is(prefix, sealed)
        return self.reveal(prefix[1 : 1 + EVENT_ID_SIZE], span)

    def open_as_it_is(self, prefix: bytes, sealed: bytes) -> bytes:
        """Open one sealed entry; raise SealwardError SEAL_BROKEN or KEYS_UNAVAILABLE."""
        try:
            branch, opener = self._opener(segment_of(sealed))
            branch.use(len(sealed))
            return opener.open(prefix, sealed)
        except SealBrokenError:
            raise _broken() from None

    def close(self) -> None:
        """Forget the keys that were opened to read."""
        with self._lock:
            while self._openers:
                _, (branch, _) = self._openers.popitem()
                branch.close()

    def _opener(self, segment_id: bytes) -> tuple[BranchKey, EntryOpener]:
        with self._lock:
            found = self._openers.get(segment_id)
            if found is not None:
                self._openers.move_to_end(segment_id)
                return found
        wrapped = self._store.get(_name(segment_id))
        if wrapped is None:
            raise _broken()
        branch = self._ring.open(self._context.about(segment_id.hex()), wrapped)
        found = (branch, EntryOpener(branch.use(), segment_id, self._origin))
        with self._lock:
            self._openers[segment_id] = found
            if len(self._openers) > _OPENERS:
                _, (oldest, _) = self._openers.popitem(last=False)
                oldest.close()
        return found


def _name(segment_id: bytes) -> str:
    return f"{SEGMENT}{segment_id.hex()}"


def _broken() -> SealwardError:
    return SealwardError(Reason.SEAL_BROKEN, "a sealed entry does not open")
