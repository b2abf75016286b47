"""The seam's fronts on grpcio.

The sync server with a thread a call is cheaper here than grpc.aio: 360 against 510 µs CPU a call
with mTLS, metadata, trailers and a batching hand-over (see docs/adr). The handler threads only
queue and wait; all work is done by the thread that calls recv().
"""

from __future__ import annotations

import ctypes
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from sealward.api.common.v1.batch_pb2 import Reply
from sealward.kit import status
from sealward.kit.access import allowed
from sealward.kit.chain import Around, ControlCall, deadline_of, read_metadata, refuse
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer, PeerReader
from sealward.kit.metrics import ServerMetrics
from sealward.kit.reasons import Code, Reason
from sealward.kit.seam import Answer, Call, Limits

_FOREVER = float("inf")
# Through ctypes because it gives up the GIL as well, which os.sched_yield does not before 3.12.
_sched_yield = ctypes.CDLL(None).sched_yield
# A call whose deadline passed still gets its record; its caller waits this much longer at most.
_GRACE_SECONDS = 0.25
# What a stream of batches may have in here, calls without an answer and answers that are not taken,
# before nothing more is read of it. One message may go beyond.
_STREAM_CALLS = 8192
_STREAM_BYTES = 32 << 20


class Inbox:
    """Where waiting calls gather. One consumer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._waiting: list[Call] = []
        self._wake = threading.Semaphore(0)
        self._closed = False

    def put(self, calls: Sequence[Call]) -> None:
        """Queue calls; wake the consumer when it had none."""
        with self._lock:
            first = not self._waiting
            self._waiting.extend(calls)
        if first:
            self._wake.release()

    def close(self) -> None:
        """Let take() return [] once nothing waits."""
        self._closed = True
        self._wake.release()

    def take(self) -> list[Call]:
        """Block until calls wait; return them, oldest first, up to the limits."""
        while True:
            self._wake.acquire()
            self._gather()
            with self._lock:
                taken = self._cut()
                if self._waiting:
                    self._wake.release()
            if taken:
                return taken
            if self._closed:
                self._wake.release()
                return []

    def _gather(self) -> None:
        """Let threads that are about to queue a call do so: no timer, only a turn of the CPU each.

        Without this the first of many calls that arrive together would travel alone, and a batch
        costs each later stage the same however many it carries.
        """
        seen = 0
        while seen < (found := len(self._waiting)) < self._limits.calls:
            seen = found
            _sched_yield()

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._waiting)

    def _cut(self) -> list[Call]:
        waiting, limits = self._waiting, self._limits
        size = 0
        for number, call in enumerate(waiting):
            size += len(call.body)
            if number and (number >= limits.calls or size > limits.bytes):
                self._waiting = waiting[number:]
                return waiting[:number]
        self._waiting = []
        return waiting


class _Slot:
    """A handler thread waiting for its answer."""

    __slots__ = ("answer", "context", "gate")

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.answer: Answer | None = None
        self.gate = threading.Lock()
        self.gate.acquire()


class UnaryFront:
    """Takes unary calls of the given methods from callers.

    Access is the consumer's to decide, because it records what it refuses.
    """

    def __init__(
        self,
        methods: Sequence[str],
        peers: PeerReader,
        metrics: ServerMetrics,
        log: structlog.typing.FilteringBoundLogger,
        limits: Limits | None = None,
    ) -> None:
        self._methods = tuple(methods)
        self._peers = peers
        self._metrics = metrics
        self._log = log
        self._inbox = Inbox(limits or Limits())
        self._slots: dict[int, _Slot] = {}
        self._ids = itertools.count(1)
        self._closed = False

    def handlers(self) -> dict[str, Any]:
        """The grpcio handlers, by full method name."""
        return {
            method: grpc.unary_unary_rpc_method_handler(self._behavior(method))
            for method in self._methods
        }

    def recv(self) -> list[Call]:
        """See seam.Front."""
        return self._inbox.take()

    def reply(self, answers: Sequence[Answer], shared: bytes = b"") -> None:  # noqa: ARG002
        """See seam.Front. An answer nobody waits for any more is dropped."""
        for answer in answers:
            slot = self._slots.pop(answer.id, None)
            if slot is not None:
                slot.answer = answer
                slot.gate.release()

    def cancelled(self, call_id: int) -> bool:
        """See seam.Front."""
        slot = self._slots.get(call_id)
        return slot is None or not slot.context.is_active()

    def close(self) -> None:
        """Refuse new calls; recv() returns [] once the waiting ones were taken."""
        self._closed = True
        self._inbox.close()

    def _behavior(self, method: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def behavior(body: bytes, context: grpc.ServicerContext) -> bytes:
            started = time.perf_counter()
            code = Code.OK
            answer: Answer | None = None
            try:
                answer = self._wait(method, body, context)
                if answer.error is not None:
                    raise answer.error
                if answer.trailers:
                    context.set_trailing_metadata(answer.trailers)
            except Exception as caught:  # noqa: BLE001 - every error leaves through one door
                error, incident = status.as_sealward_error(caught, self._log, method)
                code = error.code
                status.abort(context, error, answer.trailers if answer else (), incident)
            finally:
                self._metrics.handled(method, code, time.perf_counter() - started)
            return answer.body

        return behavior

    def _wait(self, method: str, body: bytes, context: grpc.ServicerContext) -> Answer:
        if self._closed:
            raise SealwardError(Reason.DRAINING, "the service is shutting down", retry_after=1.0)
        peer, problem = self._peers.identify(context)
        deadline = deadline_of(context)
        slot = _Slot(context)
        number = next(self._ids)
        self._slots[number] = slot
        metadata = read_metadata(context)
        self._inbox.put((Call(number, method, peer, metadata, deadline, body, problem),))
        if deadline == _FOREVER:
            slot.gate.acquire()
        elif not slot.gate.acquire(timeout=max(0.0, deadline - time.monotonic()) + _GRACE_SECONDS):
            self._slots.pop(number, None)
        if slot.answer is None:
            raise SealwardError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the answer")
        return slot.answer


class _Stream:
    """One open batch stream: what it still owes and where its replies go.

    `held` are the bytes of calls that wait for their answer and of answers that wait to be sent.
    `paused` says that nothing is read of it until there is room again.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.owed = 0
        self.held = 0
        self.ended = False
        self.paused = False

    @property
    def full(self) -> bool:
        return self.owed >= _STREAM_CALLS or self.held >= _STREAM_BYTES


class BatchFront:
    """Takes batches of calls from another of our services, on long-lived streams.

    `request_type` and `response_type` are messages with `repeated Call calls = 1` and
    `repeated Reply replies = 1`; `shared_field` names a bytes field of the response for what is
    common to a batch. `around` records a stream that is refused, as it does control calls.

    A stream that sends more than is answered, or does not take its answers, is read no further
    until there is room; flow control holds its sender. With `crowded` no more than `most_waiting`
    calls wait to be taken: what comes beyond is answered at once with the error that it gives when
    it is told of how many calls.
    """

    def __init__(
        self,
        method: str,
        request_type: Any,
        response_type: Any,
        peers: PeerReader,
        log: structlog.typing.FilteringBoundLogger,
        limits: Limits | None = None,
        shared_field: str = "",
        around: Around | None = None,
        most_waiting: int = 0,
        crowded: Callable[[int], SealwardError] | None = None,
    ) -> None:
        self._method = method
        self._around = around
        self._most_waiting = most_waiting
        self._crowded = crowded
        self._request_type = request_type
        self._response_type = response_type
        self._shared_field = shared_field
        self._peers = peers
        self._log = log
        self._inbox = Inbox(limits or Limits())
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._ids = itertools.count(1)
        self._open: dict[int, tuple[_Stream, int, int]] = {}
        self._streams: dict[_Stream, grpc.ServicerContext] = {}
        self._closed = False
        peers.revocations.on_change(self._cut)

    def handlers(self) -> dict[str, Any]:
        """The grpcio handler, by full method name."""
        return {self._method: grpc.stream_stream_rpc_method_handler(self._behavior)}

    def recv(self) -> list[Call]:
        """See seam.Front."""
        return self._inbox.take()

    def cancelled(self, call_id: int) -> bool:
        """See seam.Front."""
        with self._lock:
            return call_id not in self._open

    @property
    def waiting(self) -> int:
        """How many calls wait to be taken by `recv`."""
        return self._inbox.waiting

    @property
    def held(self) -> int:
        """How many streams are read no further, because of what they have in here."""
        with self._lock:
            return sum(stream.paused for stream in self._streams)

    def reply(self, answers: Sequence[Answer], shared: bytes = b"") -> None:
        """See seam.Front."""
        by_stream: dict[_Stream, list[Reply]] = {}
        with self._lock:
            for answer in answers:
                stream, remote, size = self._open.pop(answer.id, (None, 0, 0))
                if stream is not None:
                    stream.held -= size
                    by_stream.setdefault(stream, []).append(_reply(remote, answer))
        for stream, replies in by_stream.items():
            message = self._response_type(replies=replies)
            if shared and self._shared_field:
                setattr(message, self._shared_field, shared)
            data = message.SerializeToString()
            with self._lock:
                stream.out.put(data)
                stream.owed -= len(replies)
                stream.held += len(data)
                self._wake(stream)
                if stream.ended and not stream.owed:
                    stream.out.put(None)

    def close(self) -> None:
        """Take no new calls; recv() returns [] once the waiting ones were taken."""
        self._closed = True
        self._inbox.close()
        with self._lock:
            for stream in self._streams:
                self._end(stream)

    def _end(self, stream: _Stream) -> None:
        if not stream.ended:
            stream.ended = True
            self._wake(stream)
            if not stream.owed:
                stream.out.put(None)

    def _wake(self, stream: _Stream) -> None:
        if stream.paused and (stream.ended or not stream.full):
            stream.paused = False
            self._room.notify_all()

    def _behavior(
        self, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        trailers: list[tuple[str, str | bytes]] = []
        try:
            peer, problem = self._peers.identify(context)
            call = ControlCall(self._method, peer, {}, None, 0, deadline_of(context))
            trailers = call.trailers
            if problem is not None:
                refuse(call, problem, self._around)
            if not allowed(peer.identity, self._method):
                refuse(
                    call,
                    SealwardError(
                        Reason.IDENTITY_FORBIDDEN, f"{peer.identity.role} may not call this method"
                    ),
                    self._around,
                )
            if self._closed:
                raise SealwardError(Reason.DRAINING, "the service is shutting down")
        except SealwardError as error:
            self._log.warning("stream.refused", method=self._method, reason=error.reason.name)
            status.abort(context, error, trailers)
        stream = _Stream(peer)
        with self._lock:
            self._streams[stream] = context
        # Whoever was revoked in between was not in the list that was cut.
        self._cut()
        # The other side takes the stream as open when it sees this.
        context.send_initial_metadata(())
        reader = threading.Thread(
            target=self._read, args=(stream, requests), name="stream-reader", daemon=True
        )
        reader.start()
        try:
            while (message := stream.out.get()) is not None:
                # Comes back when the message was sent: flow control holds it while nobody reads.
                yield message
                with self._lock:
                    stream.held -= len(message)
                    self._wake(stream)
        finally:
            with self._lock:
                self._streams.pop(stream, None)
                for number in [n for n, (s, _, _) in self._open.items() if s is stream]:
                    del self._open[number]
                self._end(stream)

    def _cut(self) -> None:
        """End the streams of those who may do nothing any more; what they are owed is dropped."""
        with self._lock:
            open_ones = list(self._streams.items())
        for stream, context in open_ones:
            problem = self._peers.revocations.problem(stream.peer)
            if problem is not None:
                with self._lock:
                    self._streams.pop(stream, None)
                self._log.warning(
                    "stream.cut",
                    method=self._method,
                    identity=stream.peer.identity.uri,
                    reason=problem.reason.name,
                )
                context.cancel()

    def _full(self, more: int) -> bool:
        waiting = self._inbox.waiting
        return waiting > 0 and waiting + more > self._most_waiting

    def _turn_away(self, stream: _Stream, calls: Sequence[Any], error: SealwardError) -> None:
        replies = [_reply(call.id, Answer(0, error=error)) for call in calls]
        data = self._response_type(replies=replies).SerializeToString()
        with self._lock:
            if not stream.ended:
                stream.out.put(data)
                stream.held += len(data)

    def _read(self, stream: _Stream, requests: Iterator[bytes]) -> None:
        try:
            for raw in requests:
                batch = self._request_type.FromString(raw)
                now = time.monotonic()
                calls = []
                if self._crowded is not None and self._full(len(batch.calls)):
                    self._turn_away(stream, batch.calls, self._crowded(len(batch.calls)))
                    batch.ClearField("calls")
                with self._lock:
                    if stream.ended:
                        break
                    for call in batch.calls:
                        number = next(self._ids)
                        self._open[number] = (stream, call.id, len(call.body))
                        stream.held += len(call.body)
                        deadline = now + call.timeout_ms / 1000 if call.timeout_ms else _FOREVER
                        calls.append(
                            Call(
                                number, call.method, stream.peer, {}, deadline, call.body,
                                trace=call.trace,
                            )
                        )  # fmt: skip
                    stream.owed += len(calls)
                if calls:
                    self._inbox.put(calls)
                with self._lock:
                    stream.paused = stream.full and not stream.ended
                    self._room.wait_for(lambda: not stream.paused)
        except DecodeError:
            self._log.error("stream.malformed", method=self._method)
        except Exception as error:  # noqa: BLE001 - grpcio raises its bare Exception on a reset
            self._log.info("stream.reset", method=self._method, error_type=type(error).__name__)
        with self._lock:
            self._end(stream)


def _reply(remote: int, answer: Answer) -> Reply:
    error = answer.error
    if error is None:
        return Reply(id=remote, body=answer.body, record=answer.record)
    return Reply(
        id=remote,
        code=int(error.code),
        reason=int(error.reason),
        message=error.message,
        field=error.field,
        record=answer.record,
        retry_ms=int((error.retry_after or 0) * 1000),
    )
