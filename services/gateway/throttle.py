"""Who failed too often waits. Pure: the clock is passed in."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason


class LoginThrottle:
    """Makes a name wait after failed logins: five are free, then 1 s, doubling up to a minute.

    A login needs the certificate of the name it tries, so nobody can lock out another user. `clock`
    gives seconds and never goes back. Bounded: the longest unseen name is forgotten first.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        free: int = 5,
        longest: float = 60.0,
        capacity: int = 10_000,
    ) -> None:
        self._clock = clock
        self._free = free
        self._longest = longest
        self._capacity = capacity
        self._lock = threading.Lock()
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, name: str) -> None:
        """Raise RATE_LIMITED, with the time to wait, when the name has to."""
        with self._lock:
            _, until = self._failed.get(name, (0, 0.0))
        left = until - self._clock()
        if left > 0:
            raise SealwardError(
                Reason.RATE_LIMITED, "too many failed logins: wait", retry_after=left
            )

    def failed(self, name: str) -> None:
        """Count a failed login."""
        with self._lock:
            count = self._failed.pop(name, (0, 0.0))[0] + 1
            wait = 0.0
            if count >= self._free:
                wait = min(self._longest, 2.0 ** min(count - self._free, 10))
            self._failed[name] = (count, self._clock() + wait)
            while len(self._failed) > self._capacity:
                self._failed.popitem(last=False)

    def succeeded(self, name: str) -> None:
        """Forget a name's failures."""
        with self._lock:
            self._failed.pop(name, None)
