"""Challenges that were given out: each answered once, within minutes, by whom it was made for.

They lie in the session store, so that any gateway can take the answer, sealed for their name: what
was put back, or made up, by whoever can write to the store opens late or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable
from typing import Any

import redis

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.invalidation import STORE_ERRORS, store_unavailable
from services.gateway.sessions import Sealer

_PREFIX = "sess-challenge:"


class Challenges:
    """Thread-safe. Raises SESSION_STORE_UNAVAILABLE and KEYS_UNAVAILABLE."""

    def __init__(
        self,
        pool: redis.ConnectionPool,
        sealer: Sealer,
        seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`seconds` is how long a challenge may be answered."""
        self._redis = redis.Redis(connection_pool=pool)
        self._sealer = sealer
        self._clock = clock
        self.seconds = seconds

    def give(self, kind: str, owner: str, content: dict[str, Any], name: str = "") -> str:
        """Keep what belongs to a challenge; return its name, which is drawn unless given."""
        name = name or secrets.token_urlsafe(32)
        value = {"owner": owner, "until": self._clock() + self.seconds, "content": content}
        key = _key(kind, name)
        sealed = self._sealer.seal(json.dumps(value).encode(), key)
        try:
            self._redis.set(_PREFIX + key, sealed, ex=math.ceil(self.seconds))
        except STORE_ERRORS:
            raise store_unavailable() from None
        return name

    def take(self, kind: str, owner: str, name: str) -> dict[str, Any]:
        """Return what belongs to a challenge, which is then used; raise CHALLENGE_UNKNOWN."""
        key = _key(kind, name)
        pipe: Any
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(_PREFIX + key)
                pipe.delete(_PREFIX + key)
                sealed, _ = pipe.execute()
        except STORE_ERRORS:
            raise store_unavailable() from None
        if sealed is None:
            raise _unknown()
        try:
            value = json.loads(self._sealer.open(sealed, key))
        except SealwardError as error:
            if error.reason is not Reason.SEAL_BROKEN:
                raise
            raise _unknown() from None
        if value["owner"] != owner or self._clock() >= value["until"]:
            raise _unknown()
        content: dict[str, Any] = value["content"]
        return content


def _key(kind: str, name: str) -> str:
    return hashlib.sha256(f"{kind}\n{name}".encode()).hexdigest()


def _unknown() -> SealwardError:
    return SealwardError(
        Reason.CHALLENGE_UNKNOWN, "it is over, was used, or was never begun: begin again"
    )
