"""Calls to another service, matched with their replies: each comes back exactly once.

A call ends with its reply, with the break of its stream, or with its time limit, whichever is
first; what comes later is dropped. Several parts of the gateway share one stream: each names itself
as the sink of what it sends.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sealward.api.common.v1.batch_pb2 import Reply
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.seam import OutCall, Upstream


class Sink(Protocol):
    """Where replies go. Called from the stream's reader thread: it must not block."""

    def replied(self, done: Sequence[tuple[Any, Reply]], shared: bytes) -> None:
        """These calls were answered."""

    def lost(self, items: Sequence[Any], error: SealwardError) -> None:
        """These calls will not be answered."""


@dataclass(frozen=True, eq=False)
class Callbacks:
    """A sink made of two functions."""

    replied: Callable[[Sequence[tuple[Any, Reply]], bytes], None]
    lost: Callable[[Sequence[Any], SealwardError], None]


@dataclass(slots=True, eq=False)
class Outgoing:
    """One call: what it is about, its serialised request, its end on the monotonic clock.

    `trace` is the span that it runs under (TraceParent.encoded), empty when it is not traced.
    """

    item: Any
    body: bytes
    deadline: float
    method: str = ""
    trace: bytes = b""


class Exchange:
    """The calls in flight to one service. Thread-safe. `bind` the stream before use.

    `broken` and `late` make the errors for a lost stream and for a passed deadline.
    """

    def __init__(
        self, broken: Callable[[], SealwardError], late: Callable[[], SealwardError]
    ) -> None:
        self._broken = broken
        self._late = late
        self._upstream: Upstream | None = None
        self._ids = itertools.count(1)
        # Popping from a dict is atomic: who pops a call owns its end.
        self._waiting: dict[int, tuple[Sink, Any, float]] = {}

    def bind(self, upstream: Upstream) -> None:
        """Name the stream that carries the calls."""
        self._upstream = upstream

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, sink: Sink, calls: Sequence[Outgoing]) -> None:
        """Send a batch; raise SealwardError, and call nobody back, when nothing was sent."""
        if self._upstream is None:
            raise self._broken()
        now = time.monotonic()
        out = []
        for call in calls:
            number = next(self._ids)
            self._waiting[number] = (sink, call.item, call.deadline)
            left_ms = max(1, int(min((call.deadline - now) * 1000, 2**32 - 1)))
            out.append(OutCall(number, call.method, call.body, left_ms, call.trace))
        try:
            self._upstream.send(out)
        except SealwardError:
            for sent in out:
                self._waiting.pop(sent.id, None)
            raise

    def call(self, method: str, body: bytes, deadline: float) -> tuple[Reply, bytes]:
        """Send one call and wait; return its reply and what its batch shared; raise SealwardError.

        Not for the reader threads that deliver replies.
        """
        wait = _Wait()
        self.send(wait, [Outgoing(wait, body, deadline, method)])
        # tick() ends it; the time limit here only guards against a clock that stands still.
        if not wait.done.wait(max(0.0, deadline - time.monotonic()) + 5.0):
            raise self._late()
        if wait.error is not None or wait.reply is None:
            raise wait.error or self._broken()
        return wait.reply, wait.shared

    def on_replies(self, replies: Sequence[Reply], shared: bytes) -> None:
        """Callback of the stream."""
        done: dict[Sink, list[tuple[Any, Reply]]] = {}
        for reply in replies:
            sink, item, _ = self._waiting.pop(reply.id, (None, None, 0.0))
            if sink is not None:
                done.setdefault(sink, []).append((item, reply))
        for sink, items in done.items():
            sink.replied(items, shared)

    def on_broken(self, ids: Sequence[int]) -> None:
        """Callback of the stream: these calls died with it."""
        self._lose(ids, self._broken)

    def tick(self, now: float) -> None:
        """End the calls whose time is over; to be called every few hundredths of a second."""
        late = [number for number, entry in list(self._waiting.items()) if entry[2] <= now]
        if late:
            self._lose(late, self._late)

    def _lose(self, ids: Sequence[int], error: Callable[[], SealwardError]) -> None:
        lost: dict[Sink, list[Any]] = {}
        for number in ids:
            sink, item, _ = self._waiting.pop(number, (None, None, 0.0))
            if sink is not None:
                lost.setdefault(sink, []).append(item)
        for sink, items in lost.items():
            sink.lost(items, error())


class _Wait:
    """A sink that one thread waits at."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply: Reply | None = None
        self.shared = b""
        self.error: SealwardError | None = None

    def replied(self, done: Sequence[tuple[Any, Reply]], shared: bytes) -> None:
        self.reply, self.shared = done[0][1], shared
        self.done.set()

    def lost(self, _items: Sequence[Any], error: SealwardError) -> None:
        self.error = error
        self.done.set()


def reply_error(reply: Reply) -> SealwardError:
    """Return the error that a reply with a code other than 0 carries."""
    try:
        reason = Reason(reply.reason)
    except ValueError:
        return SealwardError(Reason.INTERNAL, "internal error")
    retry = reply.retry_ms / 1000 if reply.retry_ms else None
    if retry is None and reason is Reason.OVERLOADED:
        retry = 0.1
    return SealwardError(reason, reply.message, field=reply.field, retry_after=retry)
