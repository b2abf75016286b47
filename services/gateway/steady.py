"""Time that never goes back, for everything that ends.

A clock that is set back must not make a session, a grant or a proof of a second factor live longer.
What was once seen goes on with the monotonic clock; a clock that is set ahead is followed, which
ends things early and never late. Pure: the monotonic clock is passed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class SteadyClock:
    """Seconds since the epoch, as last observed anywhere ahead. Thread-safe."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._ahead = float("-inf")

    def observe(self, epoch: float) -> float:
        """Take a reading of some clock; return the time, which may be later."""
        now = self._monotonic()
        if epoch - now > self._ahead:
            with self._lock:
                self._ahead = max(self._ahead, epoch - now)
        return now + self._ahead

    def now(self) -> float:
        """Return the time; before anything was observed, the beginning of all times."""
        return self._monotonic() + self._ahead


_wall = SteadyClock()


def steady_time() -> float:
    """This machine's clock in seconds since the epoch, without its steps back."""
    return _wall.observe(time.time())
