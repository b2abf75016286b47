"""How many calls may be under way at once, and how many may wait for a place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason


class Gate:
    """At most `places` inside and as many before it, for `seconds` at most; the rest is refused.

    So a server that hangs holds a bounded number of threads, and the others go on to answer.
    """

    def __init__(self, places: int, seconds: float) -> None:
        self._places = threading.BoundedSemaphore(places)
        self._waiting = threading.BoundedSemaphore(places)
        self._seconds = seconds

    @contextmanager
    def entered(self, closed: Callable[[], SealwardError | None]) -> Iterator[None]:
        """Hold a place; raise what `closed` returns, or KEYSTORE_UNAVAILABLE when there is none."""
        self._check(closed)
        if not self._places.acquire(blocking=False):
            self._wait(closed)
        try:
            # It may have closed while we waited.
            self._check(closed)
            yield
        finally:
            self._places.release()

    def _wait(self, closed: Callable[[], SealwardError | None]) -> None:
        if not self._waiting.acquire(blocking=False):
            raise _busy()
        try:
            deadline = time.monotonic() + self._seconds
            # In short steps: when it closes, those who wait have to know.
            while not self._places.acquire(timeout=0.1):
                self._check(closed)
                if time.monotonic() >= deadline:
                    raise _busy()
        finally:
            self._waiting.release()

    @staticmethod
    def _check(closed: Callable[[], SealwardError | None]) -> None:
        error = closed()
        if error is not None:
            raise error


def _busy() -> SealwardError:
    return SealwardError(
        Reason.KEYSTORE_UNAVAILABLE, "too many calls wait for the key provider", retry_after=1.0
    )
