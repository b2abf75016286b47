"""What counts once: remembered in the session store, for every gateway, for as long as it counts.

The store is away: nothing counts. Names are hashed, so the store learns nothing from them.
"""

from __future__ import annotations

import hashlib
import math

import redis

from services.gateway.invalidation import STORE_ERRORS, store_unavailable

_PREFIX = "sess-once:"


class Spent:
    """Thread-safe. Raises SESSION_STORE_UNAVAILABLE."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._redis = redis.Redis(connection_pool=pool)

    def spend(self, kind: str, name: str, seconds: float) -> bool:
        """Spend a name of a kind; False when it was spent before, in the last `seconds`."""
        mark = hashlib.sha256(f"{kind}\n{name}".encode()).hexdigest()
        try:
            done = self._redis.set(_PREFIX + mark, b"1", nx=True, ex=max(1, math.ceil(seconds)))
        except STORE_ERRORS:
            raise store_unavailable() from None
        return bool(done)
