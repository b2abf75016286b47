"""Clients of the audit service: Append from a service's own stream, spans by OTLP."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc

from benchmarks.audit.spans import Request, entries, export_requests
from benchmarks.measure import percentile
from sealward.api.audit.v1.audit_pb2 import AppendRequest, AppendResponse
from sealward.api.common.v1.batch_pb2 import Reply
from sealward.kit.channel import Channels
from sealward.kit.exporter import EXPORT_METHOD
from sealward.kit.grpcio_upstream import BatchUpstream
from sealward.kit.health import Health
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.kit.seam import OutCall
from sealward.kit.tls import Credentials

APPEND = "/sealward.api.audit.v1.AuditService/Append"
_SERVER = "audit.sealward.local"


class Appender:
    """Keeps so many entries in flight through the client that the gateway uses."""

    def __init__(self, credentials: Credentials, address: str, make: Callable[[], bytes]) -> None:
        self._make = make
        self._sent: dict[int, float] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._left = 0
        self.taken: list[float] = []
        self.failed = 0
        self.idle = threading.Event()
        self._channels = Channels(credentials, address, _SERVER)
        self._upstream = BatchUpstream(
            self._channels, APPEND, AppendRequest, AppendResponse, self._replied, self._broken,
            log=get_logger("bench", io.StringIO()), health=Health(), part="audit",
            unavailable=Reason.AUDIT_UNAVAILABLE, shared_field="checkpoint",
        )  # fmt: skip
        self._upstream.start()

    def run(self, in_flight: int, *, seconds: float = 0.0, count: int = 0) -> float:
        """Send for so long, or so many; return the seconds from first to last reply."""
        self.taken, self.failed = [], 0
        self._ends = time.perf_counter() + seconds if seconds else float("inf")
        self._left = count or 1 << 60
        self.idle.clear()
        began = time.perf_counter()
        while True:
            try:
                self._send(in_flight)
                break
            except Exception:  # noqa: BLE001 - the stream is being opened
                time.sleep(0.05)
        self.idle.wait()
        return time.perf_counter() - began

    def close(self) -> None:
        self._upstream.stop()
        self._channels.close()

    def _send(self, count: int) -> None:
        count = min(count, self._left)
        if count <= 0:
            return
        calls = [OutCall(next(self._ids), "Append", self._make()) for _ in range(count)]
        now = time.perf_counter()
        with self._lock:
            self._left -= count
            self._sent.update((call.id, now) for call in calls)
        try:
            self._upstream.send(calls)
        except Exception:
            with self._lock:
                self._left += count
                for call in calls:
                    del self._sent[call.id]
            raise

    def _replied(self, replies: Sequence[Reply], _checkpoint: bytes) -> None:
        now = time.perf_counter()
        with self._lock:
            for reply in replies:
                self.taken.append(now - self._sent.pop(reply.id))
                self.failed += reply.code != 0
        if now < self._ends:
            self._send(len(replies))
        with self._lock:
            if not self._sent:
                self.idle.set()

    def _broken(self, lost: Sequence[int]) -> None:
        with self._lock:
            self.failed += len(lost)
            for call_id in lost:
                self._sent.pop(call_id, None)
            if not self._sent:
                self.idle.set()


def append(
    credentials: Credentials, address: str, in_flight: int, seconds: float
) -> dict[str, Any]:
    """Append for so long; return entries a second and latencies."""
    appender = Appender(credentials, address, entries())
    appender.run(in_flight, count=4 * in_flight)
    elapsed = appender.run(in_flight, seconds=seconds)
    appender.close()
    if appender.failed:
        raise SystemExit(f"{appender.failed} entries were refused")
    return {
        "per_second": len(appender.taken) / elapsed,
        "sent": 4 * in_flight + len(appender.taken),
        "p50_us": percentile(appender.taken, 0.5) * 1e6,
        "p99_us": percentile(appender.taken, 0.99) * 1e6,
    }


def export(
    credentials: Credentials, address: str, connections: int, seconds: float, spans: int = 512
) -> tuple[dict[str, Any], list[Request]]:
    """Export spans for so long over several connections; return figures and what was acknowledged.

    A request that is refused for the moment is sent again, as every exporter does.
    """
    make = export_requests(spans)
    lock = threading.Lock()
    acknowledged: list[Request] = []
    refused = 0
    begin = threading.Barrier(connections + 1)
    ends = [0.0]

    def work() -> None:
        nonlocal refused
        channels = Channels(credentials, address, _SERVER)
        call: Any = channels.get().unary_unary(EXPORT_METHOD)
        begin.wait()
        while time.perf_counter() < ends[0]:
            request = make()
            while True:
                try:
                    call(request.body, timeout=30, wait_for_ready=True)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    with lock:
                        refused += 1
                    time.sleep(0.05)
                else:
                    break
            with lock:
                acknowledged.append(replace(request, body=b""))
        channels.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    ends[0] = began + seconds
    begin.wait()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    count = spans * len(acknowledged)
    return {
        "per_second": count / elapsed,
        "acknowledged": count,
        "asked_to_wait": refused,
    }, acknowledged
