"""What happens around every handler, in one place and in one order.

metrics → identity → around (the service's recorder) → draining → access → size → handler → errors

`around` stands outside the access check so that refused calls are recorded too.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from sealward.kit import status
from sealward.kit.access import allowed
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer, PeerReader
from sealward.kit.metrics import ServerMetrics
from sealward.kit.reasons import Code, Reason


@dataclass(slots=True)
class ControlCall:
    """A call on its way to a handler. `trailers` are sent with the answer or the error.

    `request` is None when the message could not be read or is too large. `attributes` is where a
    handler leaves what the record should say of it (names in attributes.py). `problem` is why the
    caller's certificate is good no more. `cut` is why an open stream has to end; a handler that
    waits is woken by `wake` when it is set.
    """

    method: str
    peer: Peer
    metadata: dict[str, str | bytes]
    request: Message | None
    body_size: int
    deadline: float
    trailers: list[tuple[str, str | bytes]] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    problem: SealwardError | None = None
    cut: SealwardError | None = None
    wake: Callable[[], None] = field(default=lambda: None)


class Around(Protocol):
    """Wraps every control call of a service; must call `proceed` or raise.

    Of a stream of answers `proceed` gives the first one: it has one at least.
    """

    def __call__(self, call: ControlCall, proceed: Callable[[], Message]) -> Message:
        """Return the response of `proceed`, or raise SealwardError."""


READ_METADATA = frozenset({"authorization", "traceparent"})
OWN_PREFIX = "sealward-"
AMBIGUOUS = b""
UNKNOWN_METHOD = "unknown"
_NO_DEADLINE_SECONDS = 1e8
# A stream of answers holds a thread for as long as its caller likes: in all, and of each identity.
STREAMS = (16, 4)


def read_metadata(context: grpc.ServicerContext) -> dict[str, str | bytes]:
    """Keep the metadata that Sealward reads; the rest is neither kept nor logged.

    A key with two values (two patients, two tokens) says nothing: it is kept as `AMBIGUOUS`, which
    no reader takes for a value.
    """
    kept: dict[str, str | bytes] = {}
    for item in context.invocation_metadata() or ():
        key, value = item[0], item[1]
        if key in READ_METADATA or key.startswith(OWN_PREFIX):
            kept[key] = value if kept.get(key, value) == value else AMBIGUOUS
    return kept


def deadline_of(context: grpc.ServicerContext) -> float:
    """The caller's deadline on the monotonic clock; infinite when it gave none."""
    remaining = cast("float | None", context.time_remaining())
    # Without a deadline the core says some centuries.
    if remaining is None or remaining > _NO_DEADLINE_SECONDS:
        return float("inf")
    return time.monotonic() + remaining


def call_of(context: grpc.ServicerContext) -> ControlCall:
    """The ControlCall behind a handler's context."""
    call: ControlCall = context.sealward_call  # type: ignore[attr-defined]
    return call


def peer_of(context: grpc.ServicerContext) -> Peer:
    """The verified caller of a handler."""
    return call_of(context).peer


def refuse(call: ControlCall, error: SealwardError, around: Around | None) -> NoReturn:
    """Refuse a call that reaches no handler, through the recorder where there is one."""

    def proceed() -> Message:
        raise error

    if around is not None:
        around(call, proceed)
    raise error


class Chain:
    """Wraps handlers. One instance a server."""

    def __init__(
        self,
        log: structlog.typing.FilteringBoundLogger,
        peers: PeerReader,
        metrics: ServerMetrics,
        max_message_bytes: int,
        around: Around | None = None,
        *,
        streams: tuple[int, int] = STREAMS,
        even_stale: bool = False,
    ) -> None:
        """`even_stale`: also answer while the list of revoked certificates is not confirmed."""
        self._log = log
        self.peers = peers
        self._metrics = metrics
        self._max_bytes = max_message_bytes
        self._around = around
        self.draining = False
        self._most_streams = streams
        self._even_stale = even_stale
        self._streams: Counter[str] = Counter()
        self._streams_lock = threading.Lock()
        # One dict operation each: streams come and go without a lock.
        self._open: dict[grpc.ServicerContext, ControlCall] = {}
        peers.revocations.on_change(self._cut)

    def wrap(self, method: str, handler: Any) -> Any:
        """Return the handler with the chain around it, taking bytes and giving bytes."""
        if handler.request_streaming:
            return self._wrap_stream(method, handler)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._server_stream(method, handler))
        return grpc.unary_unary_rpc_method_handler(self._unary(method, handler))

    def refuse(self, _method: str) -> Any:
        """A handler for methods that are not served: identity first, then UNIMPLEMENTED."""

        def behavior(_body: bytes, context: grpc.ServicerContext) -> bytes:
            started = time.perf_counter()
            trailers: list[tuple[str, str | bytes]] = []
            try:
                peer, problem = self._identify(context)
                # The path is the caller's own text: it stands in no record.
                call = ControlCall(UNKNOWN_METHOD, peer, {}, None, 0, deadline_of(context))
                trailers = call.trailers
                error = SealwardError(Reason.METHOD_UNKNOWN, "this method is not served")
                refuse(call, problem or error, self._around)
            except Exception as caught:  # noqa: BLE001 - every error leaves through one door
                error, incident = status.as_sealward_error(caught, self._log, UNKNOWN_METHOD)
                self._metrics.handled(UNKNOWN_METHOD, error.code, time.perf_counter() - started)
                status.abort(context, error, trailers, incident)

        return grpc.unary_unary_rpc_method_handler(behavior)

    def check(self, peer: Peer, method: str, problem: SealwardError | None = None) -> None:
        """The certificate, draining, and the identity × RPC table."""
        if problem is not None:
            raise problem
        if self.draining:
            raise SealwardError(Reason.DRAINING, "the service is shutting down", retry_after=1.0)
        if not allowed(peer.identity, method):
            raise SealwardError(
                Reason.IDENTITY_FORBIDDEN, f"{peer.identity.role} may not call this method"
            )

    def _identify(self, context: grpc.ServicerContext) -> tuple[Peer, SealwardError | None]:
        peer, problem = self.peers.identify(context)
        if self._even_stale and problem and problem.reason is Reason.REVOCATIONS_UNKNOWN:
            problem = None
        return peer, problem

    def _cut(self) -> None:
        """End the open streams of those who may do nothing any more."""
        for context, call in list(self._open.items()):
            peer = call.peer
            problem = self.peers.revocations.problem(peer)
            if problem is not None and not (
                self._even_stale and problem.reason is Reason.REVOCATIONS_UNKNOWN
            ):
                self._open.pop(context, None)
                self._log.warning(
                    "stream.cut", identity=peer.identity.uri, reason=problem.reason.name
                )
                context.cancel()

    def recheck(
        self, judge: Callable[[ControlCall], SealwardError | None]
    ) -> list[tuple[ControlCall, SealwardError]]:
        """End the open streams of answers that `judge` has something against; return them.

        A stream ends with that error before its next answer. One that has none to give, and does
        not end by itself until the next time, is cancelled.
        """
        found: list[tuple[ControlCall, SealwardError]] = []
        for context, call in list(self._open.items()):
            if call.cut is not None:
                self._open.pop(context, None)
                context.cancel()
                continue
            problem = judge(call)
            if problem is not None:
                call.cut = problem
                call.wake()
                self._log.warning(
                    "stream.cut", identity=call.peer.identity.uri, reason=problem.reason.name
                )
                found.append((call, problem))
        return found

    def _unary(self, method: str, handler: Any) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        read, inner = handler.request_deserializer, handler.unary_unary

        def behavior(body: bytes, context: grpc.ServicerContext) -> bytes:
            started = time.perf_counter()
            code = Code.OK
            trailers: list[tuple[str, str | bytes]] = []
            try:
                call, problem = self._admit(method, body, context, read)
                trailers = call.trailers

                def proceed() -> Message:
                    self.check(call.peer, method, call.problem)
                    if problem is not None:
                        raise problem
                    response: Message = inner(call.request, context)
                    return response

                response = self._around(call, proceed) if self._around else proceed()
                context.set_trailing_metadata(tuple(trailers))
                return response.SerializeToString()
            except Exception as caught:  # noqa: BLE001 - every error leaves through one door
                error, incident = status.as_sealward_error(caught, self._log, method)
                code = error.code
                status.abort(context, error, trailers, incident)
            finally:
                self._metrics.handled(method, code, time.perf_counter() - started)

        return behavior

    def _admit(
        self, method: str, body: bytes, context: grpc.ServicerContext, read: Any
    ) -> tuple[ControlCall, SealwardError | None]:
        peer, unfit = self._identify(context)
        problem: SealwardError | None = None
        request: Message | None = None
        if len(body) > self._max_bytes:
            problem = SealwardError(
                Reason.MESSAGE_TOO_LARGE, f"a request may have {self._max_bytes} bytes"
            )
        else:
            try:
                request = read(body)
            except DecodeError:
                problem = SealwardError(
                    Reason.REQUEST_MALFORMED, "the request is not a message of its type"
                )
        call = ControlCall(
            method,
            peer,
            read_metadata(context),
            request,
            len(body),
            deadline_of(context),
            problem=unfit,
        )
        context.sealward_call = call  # type: ignore[attr-defined]
        return call, problem

    def _server_stream(
        self, method: str, handler: Any
    ) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
        read, inner = handler.request_deserializer, handler.unary_stream

        def behavior(body: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            trailers: list[tuple[str, str | bytes]] = []
            try:
                call, problem = self._admit(method, body, context, read)
                trailers = call.trailers

                def first() -> Message:
                    self.check(call.peer, method, call.problem)
                    if problem is not None:
                        raise problem
                    answer: Message = next(answers)
                    return answer

                with self._stream(context, call):
                    answers = iter(inner(call.request, context))
                    # Recorded when the first answer is there, before it leaves.
                    yield (
                        self._around(call, first) if self._around else first()
                    ).SerializeToString()
                    for response in answers:
                        if call.cut is not None:
                            break
                        yield response.SerializeToString()
                    if call.cut is not None:
                        raise call.cut
                context.set_trailing_metadata(tuple(trailers))
            except Exception as caught:  # noqa: BLE001
                error, incident = status.as_sealward_error(caught, self._log, method)
                status.abort(context, error, trailers, incident)

        return behavior

    @contextmanager
    def _stream(self, context: grpc.ServicerContext, call: ControlCall) -> Iterator[None]:
        """Count an open stream of answers; raise OVERLOADED above the bound."""
        identity = call.peer.identity.uri
        most, most_each = self._most_streams
        with self._streams_lock:
            if self._streams[identity] >= most_each or self._streams.total() >= most:
                raise SealwardError(Reason.OVERLOADED, "too many streams", retry_after=1.0)
            self._streams[identity] += 1
        # Before the check: who is revoked after it is cut.
        self._open[context] = call
        try:
            yield
        finally:
            self._open.pop(context, None)
            with self._streams_lock:
                self._streams[identity] -= 1
                if not self._streams[identity]:
                    del self._streams[identity]

    def _wrap_stream(self, method: str, handler: Any) -> Any:
        # Only reflection is a request stream outside the seam; it takes nothing from patients.
        inner, read, write = (
            handler.stream_stream,
            handler.request_deserializer,
            handler.response_serializer,
        )

        def behavior(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                peer = self.peers.identify(context)[0]
                self._open[context] = ControlCall(method, peer, {}, None, 0, float("inf"))
                peer, problem = self._identify(context)
                self.check(peer, method, problem)
                yield from inner(requests, context)
            except SealwardError as error:
                status.abort(context, error)
            finally:
                self._open.pop(context, None)

        return grpc.stream_stream_rpc_method_handler(behavior, read, write)
