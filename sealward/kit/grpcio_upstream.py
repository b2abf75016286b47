"""The seam's upstream on grpcio: batches on one long-lived stream to another of our services.

The stream is opened ahead of need, reopened when it breaks, and exchanged for a fresh one before
the other side's max_connection_age ends it or when our certificate was renewed; the old one is
half-closed and delivers what it still owes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from sealward.api.common.v1.batch_pb2 import Call as CallMessage
from sealward.api.common.v1.batch_pb2 import Reply
from sealward.kit.channel import Channels
from sealward.kit.errors import SealwardError
from sealward.kit.health import Health
from sealward.kit.reasons import Reason
from sealward.kit.seam import OnBroken, OnReplies, OutCall

_BACKOFF = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_OPEN_SECONDS = 5.0
_NOT_SENT = [0]
_MESSAGE_BYTES = 8 << 20


class _Stream:
    def __init__(self, generation: int) -> None:
        self.generation = generation
        # Calls that wait for the messages under way; see BatchUpstream.send.
        self.waiting: list[OutCall] = []
        self.messages = 0
        self.out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # By call id, the message it went with: a list of one, the calls that it is still owed.
        self.owed: dict[int, list[int]] = {}
        self.opened = time.monotonic()
        self.broken = False

    def requests(self) -> Iterator[bytes]:
        while (message := self.out.get()) is not None:
            yield message


class BatchUpstream:
    """Sends batches and hands replies to callbacks, from its own reader threads.

    `unavailable` is the reason given while the other side cannot be reached; `part` is the name
    under which readiness is published. `max_age_seconds`: see server.stream_age. `window` is how
    many messages may be under way before calls gather (see send). Every id that was sent comes back
    exactly once: in `on_replies`, or in `on_broken` when its stream died.
    """

    def __init__(
        self,
        channels: Channels,
        method: str,
        request_type: Any,
        response_type: Any,
        on_replies: OnReplies,
        on_broken: OnBroken,
        *,
        log: structlog.typing.FilteringBoundLogger,
        health: Health,
        part: str,
        unavailable: Reason,
        max_age_seconds: float = 600.0,
        shared_field: str = "",
        window: int = 8,
    ) -> None:
        self._window = window
        self._channels = channels
        self._method = method
        self._request_type = request_type
        self._response_type = response_type
        self._on_replies = on_replies
        self._on_broken = on_broken
        self._log = log
        self._health = health
        self._part = part
        self._unavailable = unavailable
        self._max_age = max_age_seconds
        self._shared_field = shared_field
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._changed = threading.Event()
        self._stop = False
        self._keeper = threading.Thread(target=self._keep, name=f"upstream-{part}", daemon=True)
        health.set(part, ready=False)

    def start(self) -> None:
        """Open the stream and keep it open until stop()."""
        self._keeper.start()

    def stop(self) -> None:
        """Half-close the stream; what is owed is still delivered."""
        self._stop = True
        self._changed.set()
        with self._lock:
            stream, self._stream = self._stream, None
            while stream is not None and stream.waiting:
                self._flush(stream)
        if stream is not None:
            stream.out.put(None)

    def send(self, calls: Sequence[OutCall]) -> None:
        """See seam.Upstream.

        While `window` messages are under way, calls gather; the next reply takes them all along.
        So under load messages grow instead of multiplying, and a call alone never waits.
        """
        with self._lock:
            stream = self._stream
            if stream is None or stream.broken:
                raise SealwardError(
                    self._unavailable, f"{self._part} cannot be reached", retry_after=1.0
                )
            stream.owed.update((call.id, _NOT_SENT) for call in calls)
            stream.waiting.extend(calls)
            if stream.messages < self._window:
                self._flush(stream)

    def _flush(self, stream: _Stream) -> None:
        calls = self._cut(stream)
        if calls:
            stream.messages += 1
            left = [len(calls)]
            stream.owed.update((call.id, left) for call in calls)
            stream.out.put(
                self._request_type(
                    calls=[
                        CallMessage(
                            id=c.id, method=c.method, body=c.body, timeout_ms=c.timeout_ms,
                            trace=c.trace,
                        )
                        for c in calls
                    ]
                ).SerializeToString()
            )  # fmt: skip

    @staticmethod
    def _cut(stream: _Stream) -> list[OutCall]:
        """Take what fits into one message; the rest goes with the next."""
        size, waiting = 0, stream.waiting
        for number, call in enumerate(waiting):
            size += len(call.body)
            if number and size > _MESSAGE_BYTES:
                stream.waiting = waiting[number:]
                return waiting[:number]
        stream.waiting = []
        return waiting

    def _settle(self, stream: _Stream, replies: Sequence[Reply]) -> None:
        """Take replies off what is owed; they may be grouped otherwise than the calls were."""
        owed = stream.owed
        for reply in replies:
            left = owed.pop(reply.id, None)
            if left is not None:
                left[0] -= 1
                if not left[0]:
                    stream.messages -= 1
        if stream.messages < self._window:
            self._flush(stream)

    def _keep(self) -> None:
        attempt = 0
        while not self._stop:
            stream = self._stream
            if stream is None or stream.broken or self._stale(stream):
                if self._open():
                    attempt = 0
                else:
                    self._changed.wait(_BACKOFF[min(attempt, len(_BACKOFF) - 1)])
                    attempt += 1
            else:
                self._changed.wait(1.0)
            self._changed.clear()

    def _stale(self, stream: _Stream) -> bool:
        return (
            stream.generation != self._channels.generation
            or time.monotonic() - stream.opened > self._max_age
        )

    def _open(self) -> bool:
        stream = _Stream(self._channels.generation)
        opened = threading.Event()
        threading.Thread(
            target=self._read, args=(stream, opened), name=f"replies-{self._part}", daemon=True
        ).start()
        if not opened.wait(_OPEN_SECONDS) or stream.broken:
            stream.broken = True
            stream.out.put(None)
            return False
        with self._lock:
            old, self._stream = self._stream, stream
            while old is not None and old.waiting:
                self._flush(old)
        if old is not None:
            old.out.put(None)
        self._health.set(self._part, ready=True)
        self._log.info("upstream.open", name=self._part)
        return True

    def _read(self, stream: _Stream, opened: threading.Event) -> None:
        try:
            open_stream: Any = self._channels.get().stream_stream(self._method, None, None)
            call = open_stream(stream.requests())
            call.initial_metadata()
            if call.is_active():
                opened.set()
            for raw in call:
                message = self._response_type.FromString(raw)
                with self._lock:
                    self._settle(stream, message.replies)
                shared = getattr(message, self._shared_field) if self._shared_field else b""
                self._on_replies(message.replies, shared)
        except (grpc.RpcError, ValueError, DecodeError) as error:
            # ValueError: the channel was closed under us by a renewal. DecodeError: what came is no
            # answer, so nothing that follows it can be told apart either.
            code = error.code().name if isinstance(error, grpc.RpcError) else "CLOSED"
            self._log.info("upstream.lost", name=self._part, code=code)
        with self._lock:
            stream.broken = True
            lost = sorted(stream.owed)
            stream.owed.clear()
            current = self._stream is stream
        stream.out.put(None)
        opened.set()
        if current and not self._stop:
            self._health.set(self._part, ready=False)
        self._changed.set()
        if lost:
            self._on_broken(lost)
