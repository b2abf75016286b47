"""Calls whose message does not come.

A handler thread waits for the message of its call, so whoever opens calls and sends nothing could
hold every thread of a service, with a certificate and nothing else. When half of the threads have
waited too long, the waiting calls of whoever has the most of them end, and for a minute that caller
may have a few such calls at a time. Who is merely slow is left alone while there is room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason

_PATIENCE_SECONDS = 1.0
_BARRED_SECONDS = 60.0
_TICK_SECONDS = 0.25
_FEW = 4


class Context(Protocol):
    """What is needed of a grpc.ServicerContext. Contexts are told apart by their identity."""

    def cancel(self) -> bool:
        """End the call."""


class HalfOpen:
    """Reads the first message of calls. Thread-safe.

    `who` names the caller of a context; it is asked only when there is trouble. `clock` gives
    seconds and never goes back.
    """

    def __init__(
        self,
        threads: int,
        who: Callable[[Any], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = threads // 2
        self._who = who
        self._clock = clock
        # One dict operation each: calls come and go without a lock.
        self._waiting: dict[Context, float] = {}
        self._barred: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="half-open", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()

    def first(self, messages: Iterator[bytes], context: Context) -> bytes:
        """Wait for the first message.

        Raises OVERLOADED to who has too many waiting calls already, REQUEST_MALFORMED when the
        caller ends its side without a message, which is not the same as an empty one, and grpcio's
        own error when the call ends.
        """
        if self._barred:
            self._check(context)
        self._waiting[context] = self._clock()
        try:
            message = next(messages, None)
        finally:
            self._waiting.pop(context, None)
        if message is None:
            raise SealwardError(Reason.REQUEST_MALFORMED, "the call has no message")
        return message

    def tick(self) -> None:
        """End calls where that is needed; to be called a few times a second."""
        now = self._clock()
        for name in [name for name, until in self._barred.items() if until <= now]:
            self._barred.pop(name, None)
        late = [c for c, since in list(self._waiting.items()) if now - since >= _PATIENCE_SECONDS]
        if len(late) < self._most:
            return
        calls: dict[str, list[Context]] = {}
        for context in late:
            calls.setdefault(self._who(context), []).append(context)
        name = max(calls, key=lambda name: len(calls[name]))
        # First barred, then ended: what takes their place is checked already.
        self._barred[name] = now + _BARRED_SECONDS
        for context in calls[name]:
            context.cancel()

    def _check(self, context: Context) -> None:
        name = self._who(context)
        if name not in self._barred:
            return
        if sum(self._who(other) == name for other in list(self._waiting)) >= _FEW:
            raise SealwardError(
                Reason.OVERLOADED, "too many calls wait for their message", retry_after=1.0
            )

    def _run(self) -> None:
        while not self._stop.wait(_TICK_SECONDS):
            self.tick()
