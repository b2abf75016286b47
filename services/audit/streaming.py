"""Streams of answers that hold nobody up: few at once, taken in time, and with an end.

A caller that does not take a part in time is cut off: flow control would hold the thread, and what
it has read, for as long as the caller likes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TypeVar

import grpc

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason

T = TypeVar("T")

STALL_SECONDS = 30.0
MOST_SECONDS = 3600.0


class Streams:
    """The streams of one kind. Bounds in seconds: for one part, and for the whole."""

    def __init__(
        self, what: str, at_once: int, stall: float = STALL_SECONDS, most: float = MOST_SECONDS
    ) -> None:
        self._what = what
        self._stall = stall
        self._most = most
        self._slots = threading.BoundedSemaphore(at_once)

    def enter(self, context: grpc.ServicerContext) -> float:
        """Take a place until the call ends; return when that has to be, on the monotonic clock.

        Raise SealwardError OVERLOADED when all are taken.
        """
        if not self._slots.acquire(blocking=False):
            raise SealwardError(
                Reason.OVERLOADED, f"other {self._what}s are under way", retry_after=5.0
            )
        # Called when the call ends, however it does; False when it has ended already.
        if not context.add_callback(self._slots.release):
            self._slots.release()
            raise SealwardError(Reason.CANCELLED, "the call has ended")
        return time.monotonic() + self._most

    def check(self, ends: float) -> None:
        """Raise SealwardError when the time of a stream is over."""
        if time.monotonic() > ends:
            raise SealwardError(
                Reason.DEADLINE_EXCEEDED, f"the {self._what} takes too long: narrow the time"
            )

    def watched(self, context: grpc.ServicerContext, part: T) -> Iterator[T]:
        """Hand out a part; end the call when it is not taken in time."""
        timer = threading.Timer(self._stall, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            # Comes back when the part was sent: flow control holds it while nobody reads.
            yield part
        finally:
            timer.cancel()
