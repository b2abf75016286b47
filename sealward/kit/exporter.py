"""Sends spooled spans to audit by OTLP/gRPC until it acknowledges them.

The protocol is OTLP/gRPC (opentelemetry-proto, docs/specification.md). One thing is stricter than
there: the specification lets an exporter drop what was answered with a status that is not
retryable; an audit record is kept and tried again, because such a status is somebody's mistake
that gets corrected (a certificate, an access rule), and the record must not be its victim.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sealward.kit.errors import SealwardError
from sealward.kit.spool import Spool
from sealward.kit.wire import bytes_field

EXPORT_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

# Below OTLP's default message limit of 4 MiB, with room for the framing.
_BATCH_BYTES = 3 << 20
_BATCH_SPANS = 512
_TIMEOUT_SECONDS = 10.0
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
# ExportTraceServiceRequest.resource_spans, ResourceSpans.scope_spans, ScopeSpans.spans
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2
_DETAILS_KEY = "grpc-status-details-bin"


class ExportError(Exception):
    """A batch was not acknowledged. `permanent`: the batch itself is at fault.

    `retry_after` (seconds) is what the other side asked for.
    """

    def __init__(self, *, permanent: bool = False, retry_after: float | None = None) -> None:
        super().__init__("export failed")
        self.permanent = permanent
        self.retry_after = retry_after


class ChannelSource(Protocol):
    """Where the channel to audit comes from (sealward.kit.channel.Channels)."""

    def get(self) -> grpc.Channel:
        """Return the channel in use."""


Send = Callable[[Sequence[bytes]], int]
"""Sends serialised spans; returns how many were rejected for good; raises ExportError."""


def otlp_sender(channels: ChannelSource, timeout: float = _TIMEOUT_SECONDS) -> Send:
    """Return a Send that calls TraceService/Export of the other side."""

    def send(spans: Sequence[bytes]) -> int:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        call = channels.get().unary_unary(EXPORT_METHOD)
        try:
            answer = call(export_request(spans), timeout=timeout)
        except grpc.RpcError as error:
            raise _classify(error) from None
        try:
            response = ExportTraceServiceResponse.FromString(answer)
        except DecodeError:
            raise ExportError from None
        return int(response.partial_success.rejected_spans)

    return send


def export_request(spans: Sequence[bytes]) -> bytes:
    """Serialise an ExportTraceServiceRequest around serialised spans."""
    scope = b"".join([bytes_field(_SPANS, span) for span in spans])
    return bytes_field(_RESOURCE_SPANS, bytes_field(_SCOPE_SPANS, scope))


def _classify(error: grpc.RpcError) -> ExportError:
    # What a call raises is RpcError and Call in one; the type stubs know no such class.
    outcome = cast("object", error)
    if not isinstance(outcome, grpc.Call):
        return ExportError()
    delay = _retry_delay(outcome)
    code = outcome.code()
    permanent = code is grpc.StatusCode.INVALID_ARGUMENT or (
        # Without RetryInfo this is the message limit (OTLP specification, "Failures").
        code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay is None
    )
    return ExportError(permanent=permanent, retry_after=delay)


def _retry_delay(error: grpc.Call) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            info = RetryInfo()
            try:
                for detail in Status.FromString(value).details:
                    if detail.Unpack(info):
                        return max(0.0, float(info.retry_delay.ToMilliseconds()) / 1000)
            except DecodeError:
                return None
    return None


class SpoolExporter:
    """The thread that empties a spool into audit."""

    def __init__(
        self, spool: Spool, send: Send, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._spool = spool
        self._send = send
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-export", daemon=True)
        self._failing = False

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, grace: float = 2.0) -> None:
        """Stop after the batch in flight; what is left stays in the spool. Closes the spool."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(grace)
        self._spool.close()

    def flush(self) -> bool:
        """Send what waits, in the calling thread; False when audit did not take it all."""
        try:
            while batch := self._spool.peek(_BATCH_SPANS, _BATCH_BYTES):
                self._deliver(batch)
        except (ExportError, SealwardError):
            return False
        return True

    def _run(self) -> None:
        delay = _FIRST_DELAY
        while not self._stop.is_set():
            if not self._spool.wait(1.0):
                continue
            batch = self._spool.peek(_BATCH_SPANS, _BATCH_BYTES)
            try:
                self._deliver(batch)
            except (ExportError, SealwardError) as error:
                if not self._failing:
                    self._failing = True
                    self._log.warning("spool.export-failing", count=self._spool.depth)
                asked = error.retry_after or 0.0
                # Half of the delay at random, so that producers do not come back in step.
                self._stop.wait(max(asked, delay * (0.5 + random.random() / 2)))  # noqa: S311
                delay = min(delay * 2, _LONGEST_DELAY)
            else:
                if self._failing:
                    self._failing = False
                    self._log.info("spool.export-recovered")
                delay = _FIRST_DELAY

    def _deliver(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Send a batch and forget it; halve it down to the record that is at fault."""
        try:
            rejected = self._send([span for _, span in batch])
        except ExportError as error:
            if not error.permanent or not batch:
                raise
            if len(batch) == 1:
                self._refuse(batch[0][0])
                return
            half = len(batch) // 2
            self._deliver(batch[:half])
            self._deliver(batch[half:])
            return
        if not rejected:
            self._spool.remove([number for number, _ in batch])
        elif len(batch) == 1:
            self._refuse(batch[0][0])
        else:
            # A partial success must not be repeated as it was. Audit knows each span again, so
            # they go one by one and the rejected ones show themselves.
            for record in batch:
                self._deliver((record,))

    def _refuse(self, number: int) -> None:
        self._spool.refuse(number)
        self._log.error("spool.record-refused", count=self._spool.refused)
