"""Who failed too often waits, and is locked then. The clock is passed in."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.lockouts import SOURCE, USER, Lockouts

# Logins of one user that may wait for the password check at the same time: a flood of one name
# leaves room for the others.
_AT_ONCE = 2


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
        lockouts: Lockouts | None = None,
    ) -> None:
        """`lockouts` is what comes after the waiting; without it nobody is locked."""
        self._lockouts = lockouts
        self._under_way: Counter[str] = Counter()
        self._clock = clock
        self._free = free
        self._longest = longest
        self._capacity = capacity
        self._lock = threading.Lock()
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @contextmanager
    def attempt(self, name: str, source: str = "") -> Iterator[None]:
        """Check, and count what is under way; raise also OVERLOADED."""
        self.check(name, source)
        with self._lock:
            if self._under_way[name] >= _AT_ONCE:
                raise SealwardError(
                    Reason.OVERLOADED, "logins of this user are waiting", retry_after=1.0
                )
            self._under_way[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[name] -= 1
                if not self._under_way[name]:
                    del self._under_way[name]

    def check(self, name: str, source: str = "") -> None:
        """Raise RATE_LIMITED or LOGIN_LOCKED, with the time to wait, when the name has to."""
        if self._lockouts is not None:
            self._lockouts.check(name, source)
        with self._lock:
            _, until = self._failed.get(name, (0, 0.0))
        left = until - self._clock()
        if left > 0:
            raise SealwardError(
                Reason.RATE_LIMITED, "too many failed logins: wait", retry_after=left
            )

    def failed(self, name: str, source: str = "") -> None:
        """Count a failed login of a user, a source, or both; an empty name is none."""
        if self._lockouts is not None:
            self._lockouts.failed(name, source)
        if not name:
            return
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
        if self._lockouts is not None:
            self._lockouts.succeeded(name)
        with self._lock:
            self._failed.pop(name, None)

    def unlock(self, user: str = "", source: str = "") -> bool:
        """Forget the failures and the lock of a user or a source; whether there were any."""
        if user:
            with self._lock:
                self._failed.pop(user, None)
        if self._lockouts is None:
            return False
        return self._lockouts.unlock(*((USER, user) if user else (SOURCE, source)))

    def locks(self, kind: str) -> dict[str, int]:
        """Return which users, or sources, are locked and until when (epoch seconds)."""
        return {} if self._lockouts is None else self._lockouts.locks(kind)
