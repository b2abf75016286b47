"""Leases: an opened branch key is used within bounds and forgotten when its time is over.

Time is the caller's monotonic clock in seconds: setting the wall clock back extends nothing.
Python cannot erase memory: forgetting means that this object no longer holds the key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from sealward.seal.errors import LeaseExpiredError
from sealward.seal.secret import Secret


@dataclass(frozen=True, slots=True)
class Lease:
    """Bounds on the use of a key: renew after `soft_seconds`, forget after `hard_seconds`."""

    soft_seconds: float
    hard_seconds: float
    max_messages: int
    max_bytes: int

    def __post_init__(self) -> None:
        if not 0 < self.soft_seconds <= self.hard_seconds:
            raise ValueError("a lease needs 0 < soft_seconds <= hard_seconds")
        if self.max_messages < 1 or self.max_bytes < 1:
            raise ValueError("a lease must allow at least one message and one byte")


class LeasedKey:
    """A key under a lease. Thread-safe.

    `granted` is when the key was asked for, not when it came: the bound holds for the one who gave.
    """

    def __init__(
        self, key: bytes, lease: Lease, clock: Callable[[], float], granted: float
    ) -> None:
        self._lock = threading.Lock()
        self._key: Secret | None = Secret(key)
        self._clock = clock
        self._messages = lease.max_messages
        self._bytes = lease.max_bytes
        self._lease = lease
        self.soft_at = granted + lease.soft_seconds
        self.hard_at = granted + lease.hard_seconds

    def use(self, size: int = 0, messages: int = 1) -> bytes:
        """Count a use (`size` bytes in `messages` messages) and return the key.

        Raises LeaseExpiredError when this use would be past a bound; the key is then forgotten if
        the bound was time.
        """
        with self._lock:
            if self._clock() >= self.hard_at:
                self._key = None
            if self._key is None:
                bound = "time" if self._clock() >= self.hard_at else "forgotten"
                raise LeaseExpiredError("the lease of the key has run out", bound)
            if messages > self._messages or size > self._bytes:
                bound = "messages" if messages > self._messages else "bytes"
                raise LeaseExpiredError("the lease of the key is used up", bound)
            self._messages -= messages
            self._bytes -= size
            return self._key.reveal()

    @property
    def renewal_due(self) -> bool:
        """True from the soft limit on, or when three quarters of another bound are used."""
        with self._lock:
            return (
                self._key is None
                or self._clock() >= self.soft_at
                or self._messages * 4 <= self._lease.max_messages
                or self._bytes * 4 <= self._lease.max_bytes
            )

    @property
    def live(self) -> bool:
        """True while the key may be used at all."""
        with self._lock:
            return self._key is not None and self._clock() < self.hard_at

    def forget(self) -> None:
        """Drop the key now."""
        with self._lock:
            self._key = None

    def __repr__(self) -> str:
        return f"LeasedKey(hard_at={self.hard_at})"
