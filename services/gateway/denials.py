"""How many refusals without a session are recorded one by one.

Ten a second for each identity; what is above is counted and goes into one summary a minute, so that
a stolen certificate or a broken client can fill neither the log nor the disk. Pure: the clock is
passed in.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

_RATE = 10.0
_BURST = 10.0


class DenialLimit:
    """A token bucket an identity. Thread-safe. Bounded: the longest quiet identity is forgotten."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._counted: dict[str, int] = {}

    def allow(self, identity: str, now: float) -> bool:
        """Return whether a refusal is to be recorded; count it when not. `now` in seconds."""
        with self._lock:
            left, seen = self._buckets.pop(identity, (_BURST, now))
            left = min(_BURST, left + (now - seen) * _RATE)
            allowed = left >= 1.0
            self._buckets[identity] = (left - 1.0 if allowed else left, now)
            while len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
            if not allowed:
                self._counted[identity] = self._counted.get(identity, 0) + 1
            return allowed

    def take(self) -> dict[str, int]:
        """Return the counts since the last time, by identity, and begin anew."""
        with self._lock:
            counted, self._counted = self._counted, {}
            return counted

    def give_back(self, identity: str, count: int) -> None:
        """Count again what could not be recorded."""
        with self._lock:
            self._counted[identity] = self._counted.get(identity, 0) + count
