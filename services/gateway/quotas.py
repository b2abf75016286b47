"""Quotas, counted for all gateways in the session store without a round trip a call.

A period (a minute, an hour, a day of the clock, UTC) of a quota is one counter in the store, under
`quota:<hash>:<number of the period>`. A gateway takes a part of what is left as a lease and spends
it in process; the next part costs one round trip, by the thread that also loads sessions. So calls
are never more than the quota; what a gateway has leased and not spent (at most a sixteenth) is lost
to the others for the rest of the period. Rows are known when the model has run: the calls under way
when the last row is spent may go over by their own rows, which count.

Calls at the same time are counted in this process: each gateway has the whole number.

The store is not trusted with access: who can write to it can give somebody a larger or a smaller
quota, no more. When it cannot be reached, calls that need a new lease are refused as they are
without a session (SESSION_STORE_UNAVAILABLE).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.invalidation import STORE_ERRORS, store_unavailable
from services.gateway.policy.limits import CALLS, CONCURRENT, ROWS, Limit

PREFIX = "quota:"
_PARTS, _LARGEST_LEASE = 16, 4096
_CAPACITY = 20_000
_LINGER_SECONDS = 60
_BUSY_SECONDS = 0.5
_TRIES = 8

_Key = tuple[Limit, str]


class _Lease:
    """What is left of one quota for one caller. `left` may be below 0: rows that are owed."""

    __slots__ = ("left", "spent", "window")

    def __init__(self, window: int, left: int, *, spent: bool) -> None:
        self.window = window
        self.left = left
        self.spent = spent


class Ticket:
    """What a call has taken. `done` is called once, when it has ended."""

    __slots__ = ("_keys", "_quotas")

    def __init__(self, quotas: Quotas, keys: Sequence[_Key]) -> None:
        self._quotas = quotas
        self._keys = keys

    def done(self, rows: int) -> None:
        """Give back the place of a call that ran this many rows, and count them."""
        self._quotas.settle(self._keys, rows)


class Quotas:
    """The quotas of this deployment, as this gateway counts them. Thread-safe.

    `clock` gives epoch seconds; `refused` is told the rule and the kind of each quota that refuses.
    """

    def __init__(
        self,
        pool: redis.ConnectionPool,
        clock: Callable[[], float] = time.time,
        refused: Callable[[str, str], None] = lambda _rule, _kind: None,
    ) -> None:
        self._redis = redis.Redis(connection_pool=pool)
        self._clock = clock
        self._refused = refused
        self._lock = threading.Lock()
        self._leases: dict[_Key, _Lease] = {}
        self._running: dict[_Key, int] = {}

    def take(self, limits: Sequence[Limit], user_id: str, *, wait: bool) -> Ticket | None:
        """Take a call's part of every quota, or of none.

        Without `wait` it does no I/O, and None says that it would have to. Raises QUOTA_EXCEEDED
        with the time when the quota is there again, and SESSION_STORE_UNAVAILABLE.
        """
        keys = [(limit, "" if limit.shared else user_id) for limit in limits]
        for _ in range(_TRIES):
            now = self._clock()
            with self._lock:
                missing = self._missing(keys, now)
                if not missing:
                    self._spend(keys)
                    return Ticket(self, keys)
            if not wait:
                return None
            for key in missing:
                self._lease(key, now)
        # Others spent every lease that we took: there is more to do than the quota allows for.
        raise SealwardError(
            Reason.QUOTA_EXCEEDED, "a quota is in great demand", retry_after=_BUSY_SECONDS
        )

    def settle(self, keys: Sequence[_Key], rows: int) -> None:
        """Count the rows of a call that has ended, and give its place back."""
        with self._lock:
            for key in keys:
                kind = key[0].kind
                if kind == CONCURRENT:
                    left = self._running.get(key, 1) - 1
                    if left > 0:
                        self._running[key] = left
                    else:
                        self._running.pop(key, None)
                elif kind == ROWS and rows:
                    lease = self._leases.get(key)
                    if lease is not None:
                        lease.left -= rows

    def active(self) -> list[tuple[Limit, str]]:
        """Return the quotas that calls of this gateway have counted, with their user ids."""
        with self._lock:
            return sorted({*self._leases, *self._running})

    def used(self, limit: Limit, user_id: str) -> tuple[int, float]:
        """Return how much of a quota is used, and when its period ends (epoch seconds; 0 = never).

        What other gateways have leased counts as used. Raises SESSION_STORE_UNAVAILABLE.
        """
        key = (limit, "" if limit.shared else user_id)
        if limit.kind == CONCURRENT:
            with self._lock:
                return self._running.get(key, 0), 0.0
        window = int(self._clock() // limit.seconds)
        value = self._run(lambda: self._redis.get(_name(key, window)))
        with self._lock:
            lease = self._leases.get(key)
            ours = lease.left if lease is not None and lease.window == window else 0
        counted = min(int(value or 0), limit.amount)
        return max(0, counted - ours), float((window + 1) * limit.seconds)

    def _missing(self, keys: Sequence[_Key], now: float) -> list[_Key]:
        """Return what has to be leased first; raise QUOTA_EXCEEDED. Holding the lock."""
        missing = []
        for key in keys:
            limit = key[0]
            if limit.kind == CONCURRENT:
                if self._running.get(key, 0) >= limit.amount:
                    raise self._exceeded(limit, _BUSY_SECONDS)
                continue
            lease = self._leases.get(key)
            window = int(now // limit.seconds)
            if lease is not None and lease.window == window:
                if lease.left > 0:
                    continue
                if lease.spent:
                    raise self._exceeded(limit, (window + 1) * limit.seconds - now)
            elif limit.amount == 0:
                raise self._exceeded(limit, (window + 1) * limit.seconds - now)
            missing.append(key)
        return missing

    def _spend(self, keys: Sequence[_Key]) -> None:
        for key in keys:
            kind = key[0].kind
            if kind == CALLS:
                self._leases[key].left -= 1
            elif kind == CONCURRENT:
                self._running[key] = self._running.get(key, 0) + 1

    def _lease(self, key: _Key, now: float) -> None:
        """Take the next part of a quota from the store."""
        limit = key[0]
        window = int(now // limit.seconds)
        with self._lock:
            lease = self._leases.get(key)
            same = lease is not None and lease.window == window
            if lease is not None and same and (lease.left > 0 or lease.spent):
                return
            owed = -lease.left if lease is not None and same else 0
        part = max(1, min(limit.amount // _PARTS, _LARGEST_LEASE))
        name = _name(key, window)

        def count() -> Any:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.incrby(name, part + owed)
                # By the store's clock: with ours a counter could be over before it has counted.
                pipe.expire(name, limit.seconds + _LINGER_SECONDS)
                return pipe.execute()[0]

        after = int(self._run(count))
        granted = max(0, min(part, limit.amount - (after - part)))
        with self._lock:
            lease = self._leases.get(key)
            if lease is None or lease.window != window:
                if len(self._leases) >= _CAPACITY:
                    self._forget(now)
                lease = self._leases[key] = _Lease(window, 0, spent=False)
                owed = 0
            lease.left += owed + granted
            lease.spent = granted < part

    def _forget(self, now: float) -> None:
        """Drop leases of periods that are over, and all of them when that is not enough."""
        self._leases = {
            key: lease
            for key, lease in self._leases.items()
            if lease.window == int(now // key[0].seconds)
        }
        if len(self._leases) >= _CAPACITY:
            self._leases = {}

    def _exceeded(self, limit: Limit, seconds: float) -> SealwardError:
        self._refused(limit.rule, limit.kind)
        return SealwardError(
            Reason.QUOTA_EXCEEDED,
            f"the quota {limit.text} of the policy {limit.rule} is used up",
            retry_after=max(0.1, seconds),
        )

    @staticmethod
    def _run(operation: Callable[[], Any]) -> Any:
        try:
            return operation()
        except STORE_ERRORS:
            raise store_unavailable() from None


def _name(key: _Key, window: int) -> str:
    """Return the counter's name: of rule and caller, not of the amount, which may change."""
    limit, user_id = key
    text = f"{limit.rule}\n{limit.kind}\n{limit.seconds}\n{int(limit.shared)}\n{user_id}"
    return f"{PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:32]}:{window}"
