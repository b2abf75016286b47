"""Receipts for a stock `tritonclient.grpc.InferenceServerClient`.

`attach` puts a channel of ours around the client's own. Every ModelInfer then carries the session's
token and its call number, and its receipt is verified over the raw bytes before tritonclient sees
the answer. The Open Inference Protocol stubs stay tritonclient's: two copies cannot live in one
process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc

from sealward.client.calls import ListedCall
from sealward.client.client import Renewer
from sealward.client.connection import Connection, Metadata, Reply, pairs
from sealward.client.core import INFER, Core
from sealward.client.errors import ClientError, ConsistencyUnavailableError
from sealward.client.guard import Guard
from sealward.client.profile import Profile
from sealward.client.renewal import Renewal
from sealward.client.verify import Proof
from sealward.kit.reasons import Code

if TYPE_CHECKING:  # generic for the type checker alone
    _Future = grpc.Future[Any]
else:
    _Future = grpc.Future

_VERIFIERS = 4

OnVerified = Callable[[Proof], None]


class Attachment:
    """What `attach` returns. `client` is the tritonclient; its `close` ends the attachment too."""

    def __init__(self, client: Any, channel: AttachedChannel) -> None:
        self.client = client
        self._channel = channel

    def settle(self) -> None:
        """Prove every checkpoint that still waits for it. Raises ForkError."""
        self._channel.settle()

    def close(self) -> None:
        """Prove what waits and close the client. Raises ForkError."""
        self.client.close()


def attach(
    triton_client: Any,
    profile: Profile | str | os.PathLike[str],
    *,
    purpose: str | None = None,
    patient: str | None = None,
    consistency_interval: float = 0.0,
    on_verified: OnVerified | None = None,
) -> Attachment:
    """Make a tritonclient verify the receipt of every answer before it returns it.

    `triton_client` is a `tritonclient.grpc.InferenceServerClient` that was opened with the
    profile's `ca.pem`, `key.pem` and `cert.pem`; `profile` is the folder, in which somebody has
    logged in. `purpose` and `patient` are sent with every prediction unless its `headers` name
    them. `on_verified` is called with the proof of each answer, in the thread that verified it.

    Where a receipt is missing, wrong or forked, `infer` raises TrustError; `async_infer` gives its
    callback an InferenceServerException with status DATA_LOSS. Refused calls keep tritonclient's
    own exception. Streams are refused: their answers could not be verified. After a renewal of the
    certificate calls go over a channel of the profile's own.

    Raises TypeError for another kind of client and ProfileError.
    """
    inner = getattr(triton_client, "_channel", None)
    stub = getattr(triton_client, "_client_stub", None)
    if not isinstance(inner, grpc.Channel) or stub is None:
        raise TypeError("attach() takes a tritonclient.grpc.InferenceServerClient")
    found = profile if isinstance(profile, Profile) else Profile.load(profile)
    channel = AttachedChannel(
        inner, Core(found, consistency_interval), purpose, patient, on_verified
    )
    # Both names are tritonclient's internals, unchanged since its first release; the conformance
    # test runs against the current one.
    triton_client._client_stub = type(stub)(channel)  # noqa: SLF001
    triton_client._channel = channel  # noqa: SLF001
    return Attachment(triton_client, channel)


class AttachedChannel(grpc.Channel):
    """A channel that verifies ModelInfer and adds the session to every other unary call."""

    def __init__(
        self,
        inner: grpc.Channel,
        core: Core,
        purpose: str | None,
        patient: str | None,
        on_verified: OnVerified | None,
    ) -> None:
        self.core = core
        self.connection = Connection(inner)
        self.guard = Guard(core, self.connection)
        self.on_verified = on_verified
        self.workers = ThreadPoolExecutor(_VERIFIERS, thread_name_prefix="sealward-verify")
        self._purpose = purpose
        self._patient = patient
        self._renewer = Renewer(core, Renewal(core.profile), self.connection)
        self._renewer.start()
        self._closing = threading.Lock()
        self._closed = False

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See grpc.Channel. Takes the stubs' serialisers, so that it sees the bytes themselves."""
        return _Unary(self, method, request_serializer, response_deserializer)

    def unary_stream(self, method: str, *_args: Any, **_kwargs: Any) -> Any:
        """See grpc.Channel. Refused when it is called."""
        return _refuse_stream(method)

    def stream_unary(self, method: str, *_args: Any, **_kwargs: Any) -> Any:
        """See grpc.Channel. Refused when it is called."""
        return _refuse_stream(method)

    def stream_stream(self, method: str, *_args: Any, **_kwargs: Any) -> Any:
        """See grpc.Channel. Refused when it is called."""
        return _refuse_stream(method)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """See grpc.Channel."""
        with self.connection.channel() as held:
            held.channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        """See grpc.Channel."""
        with self.connection.channel() as held:
            held.channel.unsubscribe(callback)

    def start(self, method: str, given: Any) -> Started:
        """Return a call's metadata: the caller's own, and ours where it names none.

        A prediction is put into the list of calls, under the session and number that it goes with.
        """
        own = pairs(given.items() if isinstance(given, dict) else given)
        if method == INFER:
            token, seq = _chosen(own)
            call = self.core.begin(self._purpose, self._patient, token=token, seq=seq)
            ours, listed = call.metadata, call.listed
        else:
            ours, listed = self.core.bearer_if_any(), None
        named = {key for key, _ in own}
        return Started((*own, *(item for item in ours if item[0] not in named)), listed)

    def conclude(self, request: bytes, reply: Reply, started: Started) -> None:
        """Check how a call ended; raise TrustError for what must not be used.

        A failed call passes: what it raises is tritonclient's. Its receipt must hold if it has one.
        """
        listed = started.listed
        if listed is None:
            self._control(reply)
            return
        try:
            if reply.code is not Code.OK:
                listed.failed(self.guard.refused(request, reply))
                return
            proof = self.guard.answered(request, reply)
        except BaseException as error:
            listed.failed(error)
            raise
        listed.answered(proof)
        if self.on_verified is not None:
            self.on_verified(proof)

    def _control(self, reply: Reply) -> None:
        if reply.code is not Code.OK:
            self.guard.refused(None, reply)
        else:
            self.guard.controlled(reply)

    def settle(self) -> None:
        """Prove every checkpoint that still waits for it."""
        self.guard.settle()

    def close(self) -> None:
        """See grpc.Channel. Raises ForkError."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._renewer.stop()
        # Not waited for: a callback may close its own client.
        self.workers.shutdown(wait=False)
        try:
            self.guard.settle()
        except ConsistencyUnavailableError:
            return
        finally:
            self.connection.close()
            self.core.calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Started:
    """A call on its way: what it is sent with, and its place in the list of calls."""

    metadata: Metadata
    listed: ListedCall | None


def _chosen(own: Metadata) -> tuple[str, int | None]:
    """Return the token and the number that a caller names in its own headers."""
    named = {key: value for key, value in own if isinstance(value, str)}
    scheme, _, token = named.get("authorization", "").partition(" ")
    seq = named.get("sealward-seq", "")
    number = int(seq) if seq.isascii() and seq.isdigit() and len(seq) < 20 else None
    if number is None and "sealward-seq" in named:
        # Refused by the gateway; it uses up no number.
        number = 0
    return token if scheme.lower() == "bearer" else "", number


class _Unary:
    """A multi-callable that sees the bytes. The three ways to call are grpcio's."""

    def __init__(
        self, channel: AttachedChannel, method: str, serializer: Any, deserializer: Any
    ) -> None:
        self._channel = channel
        self._method = method
        self._serialize = serializer
        self._deserialize = deserializer

    def __call__(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return self.with_call(request, *args, **kwargs)[0]

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, grpc.Call]:
        body = self._serialize(request)
        started = self._channel.start(self._method, metadata)
        with self._channel.connection.channel() as held:
            answer: bytes
            try:
                answer, call = held.channel.unary_unary(self._method).with_call(
                    body, timeout=timeout, metadata=started.metadata, **kwargs
                )
            except grpc.RpcError as error:
                self._channel.conclude(body, Reply.of_error(error), started)
                raise
            reply = Reply(Code.OK, "", answer, pairs(call.trailing_metadata()))
            self._channel.conclude(body, reply, started)
        return self._deserialize(answer), call

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        **kwargs: Any,
    ) -> _VerifiedFuture:
        body = self._serialize(request)
        started = self._channel.start(self._method, metadata)
        connection = self._channel.connection
        held = connection.hold()
        try:
            inner: Any = held.channel.unary_unary(self._method).future(
                body, timeout=timeout, metadata=started.metadata, **kwargs
            )
        except BaseException:
            connection.release(held)
            raise
        # The channel stays open until the call has ended, even if it is swapped meanwhile.
        inner.add_done_callback(lambda _: connection.release(held))
        return _VerifiedFuture(self._channel, started, body, inner, self._deserialize)


class _VerifiedFuture(_Future):
    """A call under way that is done when its receipt was verified.

    Verifying may call the gateway again, which must not happen in grpcio's own thread.
    """

    def __init__(
        self,
        channel: AttachedChannel,
        started: Started,
        request: bytes,
        inner: Any,
        deserialize: Callable[[bytes], Any],
    ) -> None:
        self._channel = channel
        self._started = started
        self._request = request
        self._inner = inner
        self._deserialize = deserialize
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Any], None]] = []
        self._value: Any = None
        self._error: Exception | None = None
        inner.add_done_callback(self._hand_over)

    def _hand_over(self, _inner: Any) -> None:
        try:
            self._channel.workers.submit(self._finish)
        except RuntimeError:
            # Closed meanwhile: nothing is verified any more, so nothing is given out.
            self._complete(_AttachedError(ClientError("the client was closed")))

    def _finish(self) -> None:
        inner = self._inner
        try:
            if inner.cancelled():
                raise grpc.FutureCancelledError
            code = inner.code()
            if code is not grpc.StatusCode.OK:
                self._conclude(Reply.of_error(inner))
                raise inner.exception()
            answer = inner.result()
            reply = Reply(Code.OK, "", answer, pairs(inner.trailing_metadata()))
            self._conclude(reply)
            self._value = self._deserialize(answer)
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            self._complete(error)
        except Exception as error:  # noqa: BLE001 - it is the call's result
            self._complete(_AttachedError(error))
        else:
            self._complete(None)

    def _conclude(self, reply: Reply) -> None:
        self._channel.conclude(self._request, reply, self._started)

    def _complete(self, error: Exception | None) -> None:
        self._error = error
        with self._lock:
            self._done.set()
            callbacks = self._callbacks
            self._callbacks = []
        for callback in callbacks:
            callback(self)

    def _wait(self, timeout: float | None) -> None:
        if not self._done.wait(timeout):
            raise grpc.FutureTimeoutError

    def result(self, timeout: float | None = None) -> Any:
        self._wait(timeout)
        if self._error is not None:
            raise self._error
        return self._value

    def exception(self, timeout: float | None = None) -> Exception | None:
        self._wait(timeout)
        return self._error

    def traceback(self, timeout: float | None = None) -> Any:
        self._wait(timeout)
        return self._error.__traceback__ if self._error is not None else None

    def cancel(self) -> bool:
        return bool(self._inner.cancel())

    def cancelled(self) -> bool:
        return bool(self._inner.cancelled())

    def running(self) -> bool:
        return not self._done.is_set()

    def done(self) -> bool:
        return self._done.is_set()

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(fn)
                return
        fn(self)

    def __getattr__(self, name: str) -> Any:
        # The grpc.Call half: code, details, metadata.
        return getattr(self._inner, name)


class _AttachedError(grpc.RpcError):
    """An error of ours in the one form that tritonclient hands to its callbacks."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.__cause__ = error

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.DATA_LOSS

    def details(self) -> str:
        return str(self)

    def debug_error_string(self) -> str:
        return f"{type(self.__cause__).__name__}: {self}"


def _refuse_stream(method: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise ClientError(f"attach() does not verify streams: {method} is not available")

    return refuse
