"""The gRPC server: TLS 1.3, client certificate required, one chain around every handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2_grpc

from sealward.kit import status
from sealward.kit.chain import STREAMS, Around, Chain, ControlCall
from sealward.kit.context import ServiceContext
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.halfopen import HalfOpen
from sealward.kit.pinning import Pins
from sealward.kit.settings import ServiceSettings, split_address

# What the core lets through above our own limit, so that an oversize request is refused by us, with
# a reason and a record, and not by the core, with neither.
_OVERSIZE_BYTES = 12 << 20


def connection_age(certificate_seconds: float) -> float:
    """Seconds after which a listener ends a connection: it would outlive its certificate."""
    return certificate_seconds / 5


def stream_age(certificate_seconds: float) -> float:
    """Seconds after which a long stream to such a listener is to be opened anew.

    Well before the listener ends its connection, which it does a tenth sooner or later.
    """
    return 0.8 * connection_age(certificate_seconds)


class HandlerSource(Protocol):
    """A front of the seam that has grpcio handlers."""

    def handlers(self) -> dict[str, Any]:
        """Handlers by full method name."""

    def close(self) -> None:
        """Take no new calls."""


class _Collector:
    """Stands where a grpc.Server is expected and keeps the handlers that are registered."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}
        self.services: list[str] = []

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.services.append(service)
        self.handlers.update({f"/{service}/{name}": h for name, h in handlers.items()})

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same handlers once more, in the form that hides their names."""


class _Router(grpc.GenericRpcHandler):
    """Routes by the exact method name; everything else goes to `refuse`."""

    def __init__(
        self, handlers: dict[str, Any], refuse: Callable[[str], Any], half_open: HalfOpen
    ) -> None:
        self._handlers = {method: _reading(h, half_open) for method, h in handlers.items()}
        self._refuse = refuse
        self._half_open = half_open

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        return self._handlers.get(method) or _reading(self._refuse(method), self._half_open)


def _reading(handler: Any, half_open: HalfOpen) -> Any:
    """Let a handler of unary requests read its message itself.

    grpcio would wait for it before we see the call, for as long as the caller likes.
    """
    if handler.request_streaming:
        return handler

    def first(messages: Iterator[bytes], context: Any) -> bytes:
        try:
            return half_open.first(messages, context)
        except SealwardError as error:
            status.abort(context, error)

    if handler.response_streaming:
        stream = handler.unary_stream
        return grpc.stream_stream_rpc_method_handler(
            lambda messages, context: stream(first(messages, context), context)
        )
    unary = handler.unary_unary
    return grpc.stream_unary_rpc_method_handler(
        lambda messages, context: unary(first(messages, context), context)
    )


class GrpcServer:
    """A listener. `servicers` are pairs of a generated add_…_to_server and its servicer.

    `streams`: how many streams of answers may be open, in all and of each identity.
    """

    def __init__(
        self,
        ctx: ServiceContext[Any],
        *,
        servicers: Sequence[tuple[Callable[[Any, Any], None], Any]] = (),
        fronts: Sequence[HandlerSource] = (),
        around: Around | None = None,
        max_message_bytes: int | None = None,
        streams: tuple[int, int] = STREAMS,
    ) -> None:
        settings: ServiceSettings = ctx.settings
        limit = max_message_bytes or settings.max_message_bytes
        self._ctx = ctx
        self._fronts = tuple(fronts)
        self._chain = Chain(ctx.log, ctx.peers, ctx.server_metrics, limit, around, streams=streams)
        # Health is told when little else is known.
        unrecorded = Chain(ctx.log, ctx.peers, ctx.server_metrics, limit, even_stale=True)
        collector = _Collector()
        for add, servicer in servicers:
            add(servicer, collector)
        handlers = {m: self._chain.wrap(m, h) for m, h in collector.handlers.items()}
        # Health and reflection leave no record: docs/adr/0010-records-of-refusals.md.
        plain = _Collector()
        health_pb2_grpc.add_HealthServicer_to_server(ctx.health.servicer, plain)
        hot = {m: h for front in fronts for m, h in front.handlers().items()}
        names = sorted({*collector.services, *(m.split("/")[1] for m in hot)})
        if settings.development:
            from grpc_reflection.v1alpha import reflection

            reflection.enable_server_reflection(
                [*names, "grpc.health.v1.Health", reflection.SERVICE_NAME], plain
            )
        handlers.update({m: unrecorded.wrap(m, h) for m, h in plain.handlers.items()})
        handlers.update(hot)
        ctx.health.serve(names)
        self._half_open = HalfOpen(settings.workers, self._who)
        age_ms = int(connection_age(settings.certificate_seconds) * 1000)
        self._server = grpc.server(
            ThreadPoolExecutor(settings.workers, thread_name_prefix="rpc"),
            handlers=[_Router(handlers, self._chain.refuse, self._half_open)],
            # Above the threads some calls may wait for one; more are refused at once.
            maximum_concurrent_rpcs=2 * settings.workers,
            options=[
                ("grpc.max_receive_message_length", limit + _OVERSIZE_BYTES),
                ("grpc.max_send_message_length", 64 << 20),
                ("grpc.max_metadata_size", 16 << 10),
                ("grpc.so_reuseport", 0),
                # An open connection outlives its certificate: it has to end well before.
                ("grpc.max_connection_age_ms", age_ms),
                ("grpc.max_connection_age_grace_ms", 30_000),
                ("grpc.http2.max_ping_strikes", 2),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
            ],
        )
        host, port = split_address(settings.address)
        try:
            bound = self._server.add_secure_port(f"{host}:{port}", ctx.credentials.server())
        except RuntimeError:
            bound = 0
        if not bound:
            raise StartupError(f"cannot listen on {settings.address}: is it in use?")
        self.address = f"{host}:{bound}"
        self._pins = Pins((host, bound))

    def start(self) -> None:
        """Serve."""
        self._half_open.start()
        self._server.start()
        self._ctx.credentials.before_change(self._pin)

    def _pin(self) -> None:
        if not self._pins.pin():
            self._ctx.log.warning("listener.unpinned", address=self.address)

    def recheck(
        self, judge: Callable[[ControlCall], SealwardError | None]
    ) -> list[tuple[ControlCall, SealwardError]]:
        """See Chain.recheck."""
        return self._chain.recheck(judge)

    def drain(self, grace: float) -> None:
        """Turn NOT_SERVING, refuse new calls, let those in flight end within `grace` seconds."""
        self._ctx.health.drain()
        self._chain.draining = True
        for front in self._fronts:
            front.close()
        self._server.stop(grace).wait(grace + 1.0)
        self._half_open.stop()
        self._pins.close()

    def _who(self, context: Any) -> str:
        try:
            return self._ctx.peers.identify(context)[0].identity.uri
        except SealwardError:
            return ""
