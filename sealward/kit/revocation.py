"""Which certificates are good no more, as a service last learnt it from keys.

Asked on every call, so it costs one look into a set and one at the clock. Who has learnt nothing
for too long knows nobody any more: `problem` then refuses everyone until keys answers again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason

if TYPE_CHECKING:
    from sealward.kit.identity import Peer

_FOREVER = float("inf")


class Revocations:
    """The list in use. Thread-safe.

    `bound_seconds` is how long it may go unconfirmed; before the first list it is never confirmed.
    `clock` gives seconds and never goes back.
    """

    def __init__(
        self, bound_seconds: float = _FOREVER, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bound = bound_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._serials: frozenset[int] = frozenset()
        self._version = 0
        self._confirmed = -_FOREVER
        self._good_until = -_FOREVER
        self._stale = True
        self._listeners: list[Callable[[], None]] = []
        self._destructions: int | None = None
        self._on_destruction: list[Callable[[], None]] = []

    @property
    def version(self) -> int:
        """Version of the list; 0 before the first one."""
        return self._version

    @property
    def age(self) -> float:
        """Seconds since the list was last confirmed; infinite before the first one."""
        return self._clock() - self._confirmed

    @property
    def stale(self) -> bool:
        """True when the list was not confirmed for too long."""
        return self._clock() > self._good_until

    def __len__(self) -> int:
        return len(self._serials)

    def __contains__(self, serial: int) -> bool:
        return serial in self._serials

    def problem(self, peer: Peer) -> SealwardError | None:
        """Return why this peer may do nothing; None when there is no reason."""
        if peer.serial in self._serials:
            return SealwardError(Reason.CERTIFICATE_REVOKED, "the certificate was revoked")
        if self._clock() > self._good_until:
            return SealwardError(
                Reason.REVOCATIONS_UNKNOWN,
                "the list of revoked certificates was not confirmed for too long",
                retry_after=1.0,
            )
        return None

    def learn(self, version: int, serials: Iterable[int]) -> None:
        """Take a whole list.

        One of a lower version than the last takes nothing back: what was revoked once stays so for
        as long as this process lives.
        """
        with self._lock:
            fresh = frozenset(serials)
            if version < self._version:
                fresh |= self._serials
            changed = fresh != self._serials
            self._serials = fresh
            self._version = version
            self._confirm()
        if changed:
            self._tell()

    def confirm(self, version: int) -> None:
        """Note that the list is still of this version; raise ValueError when ours is another."""
        with self._lock:
            if version != self._version:
                raise ValueError("another version of the list")
            self._confirm()

    def tick(self) -> None:
        """Tell the listeners when the list has become stale; to be called about once a second."""
        with self._lock:
            if self._stale or not self.stale:
                return
            self._stale = True
        self._tell()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when what `problem` says of somebody may have turned into a refusal."""
        with self._lock:
            self._listeners.append(listener)

    def learn_destructions(self, count: int) -> None:
        """Take how often keys were destroyed so far; another number than before is told."""
        with self._lock:
            told = self._destructions is not None and count != self._destructions
            self._destructions = count
            listeners = list(self._on_destruction)
        if told:
            for listener in listeners:
                listener()

    def on_destruction(self, listener: Callable[[], None]) -> None:
        """Call `listener` when keys were destroyed: what is leased may be among them."""
        with self._lock:
            self._on_destruction.append(listener)

    def _confirm(self) -> None:
        self._confirmed = self._clock()
        self._good_until = self._confirmed + self._bound
        self._stale = False

    def _tell(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
