"""What the log needs from a database: one small interface, one file for each backend.

A store keeps the entries, their event ids and the tree head that covers them, and commits all three
together or not at all. It knows nothing of keys, signatures or spans. The embedded backend is
embedded_store.py. What can be searched is elsewhere (index.py) and derived.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class StoreError(Exception):
    """Base of the errors here. None of them carries data."""


class StoreFullError(StoreError):
    """There is no space. Nothing of the batch was stored; a later one may succeed."""


class StoreBrokenError(StoreError):
    """The disk failed. What the last commit did is unknown: the process has to stop.

    A failed fsync must never be tried again: the kernel may have dropped the dirty pages and then
    says yes to data that is not there.
    """


class EventKey(NamedTuple):
    """What makes appending idempotent.

    `fingerprint` (16 bytes) tells a repetition from another event under the same id.
    """

    event_id: bytes
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The tree head over everything stored: number of leaves and their root (32 bytes)."""

    size: int
    root: bytes


class LogStore(Protocol):
    """Where a log lives. One process writes; reads may come from any thread."""

    def head(self) -> Head | None:
        """Return the newest committed head; None when nothing was ever committed."""

    def begin(self, first: int, leaves: Sequence[bytes]) -> None:
        """Take note of entries [first, first + n), whose `commit` with the same leaves may follow.

        The backend may begin to write them while the caller hashes. Without that commit nothing of
        them is stored. Raise as `commit`.
        """

    def commit(
        self,
        first: int,
        leaves: Sequence[bytes],
        hashes: Sequence[bytes],
        keys: Sequence[EventKey],
        head: Head,
    ) -> None:
        """Store entries [first, first + n), their ids and the new head, durably, or nothing.

        `hashes` are the leaf hashes; a backend may keep them for `hashes` or not.

        Raise StoreFullError or StoreBrokenError.
        """

    def find(self, event_ids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """Return (index, fingerprint) of those events that are there."""

    def leaves(self, start: int, end: int) -> list[bytes]:
        """Return the leaves [start, end); raise StoreBrokenError when one is missing."""

    def framed(self, start: int, end: int) -> bytes:
        """Return the leaves [start, end) as one value (framing.py); raise as `leaves`."""

    def hashes(self, start: int, end: int) -> bytes:
        """Return the joined leaf hashes of [start, end); raise as `leaves`.

        Kept or computed: whoever asks compares them with the tree.
        """

    def get(self, name: str) -> bytes | None:
        """Return a named value of the log (its origin, its wrapped keys)."""

    def names(self, prefix: str) -> list[str]:
        """Return the names of the named values that begin so, sorted."""

    def put(self, values: Iterable[tuple[str, bytes]]) -> None:
        """Store named values durably, all or none; raise as `commit`."""

    def forget(self, prefix: str) -> int:
        """Delete the named values whose names begin so, for good; return how many there were.

        No page, no journal and no free space that the backend can reach holds them afterwards;
        what copies were made elsewhere is the operator's. Raise as `commit`.
        """

    def seal(self) -> None:
        """Make the store fit for being kept read-only, and close it. Raise StoreBrokenError."""

    def maintain(self) -> None:
        """Do what the backend needs now and then; never while it would hold up a commit.

        Raise as `commit`.
        """

    def close(self) -> None:
        """Release everything."""
