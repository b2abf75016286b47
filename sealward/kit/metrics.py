"""Metric names, and the listener that serves them.

Every metric name of the chassis stands here. Labels are singular, their values come from closed
sets; no user, patient, token or free text is ever a label. The listener speaks TLS 1.3 and wants a
client certificate of this deployment, like every other one.
"""

from __future__ import annotations

import socketserver
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sealward.kit.errors import SealwardError
from sealward.kit.hardening import dumpable
from sealward.kit.health import Health
from sealward.kit.identity import peer_from_certificate
from sealward.kit.reasons import Code, Reason
from sealward.kit.revocation import Revocations
from sealward.kit.settings import split_address
from sealward.kit.spool import Spool
from sealward.kit.tls import Credentials

_CONNECTIONS = 64
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class ServerMetrics:
    """Counts and times the calls of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "sealward_rpc_calls", "Calls answered, by method and status code",
            ["method", "code"], registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "sealward_rpc_seconds", "Time to answer a call, by method",
            ["method"], registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self._bound: dict[tuple[str, int], Any] = {}
        self._timers: dict[str, Any] = {}

    def handled(self, method: str, code: Code, seconds: float) -> None:
        """Count one answered call."""
        key = (method, int(code))
        counter = self._bound.get(key)
        if counter is None:
            # The timer first: another thread that finds the counter takes the timer for granted.
            self._timers[method] = self._seconds.labels(method)
            counter = self._bound[key] = self._calls.labels(method, code.name)
        counter.inc()
        self._timers[method].observe(seconds)


def process_metrics(registry: CollectorRegistry, service: str, version: str) -> None:
    """Register the metrics that every process has."""
    Gauge(
        "sealward_build_info", "Version of this service", ["service", "version"], registry=registry
    ).labels(service, version).set(1)
    Gauge("sealward_start_time_seconds", "When this process started", registry=registry).set(
        time.time()
    )
    Gauge(
        "sealward_process_dumpable",
        "1 when a crash could write the memory of this process into a core file",
        registry=registry,
    ).set_function(dumpable)


def revocation_metrics(
    registry: CollectorRegistry, revocations: Revocations, *, follows: bool
) -> None:
    """Register what a process knows of revoked certificates; `follows`: it learns it from keys."""
    Gauge(
        "sealward_revocations", "Revoked certificates that this process refuses", registry=registry
    ).set_function(lambda: len(revocations))
    if follows:
        Gauge(
            "sealward_revocations_age_seconds",
            "Time since the list of them was last confirmed",
            registry=registry,
        ).set_function(lambda: revocations.age)


def health_metrics(registry: CollectorRegistry, health: Health) -> None:
    """Register what Prometheus can see of a process's health."""
    Gauge(
        "sealward_ready", "1 while the service is ready, 0 while it says NOT_SERVING",
        registry=registry,
    ).set_function(lambda: float(health.ready))  # fmt: skip


class SpoolMetrics(Collector):
    """What waits for audit in a process's spool. Reads it when somebody scrapes."""

    def __init__(self, registry: CollectorRegistry, spool: Spool) -> None:
        self._spool = spool
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        spool = self._spool
        oldest = spool.oldest()
        age = max(0.0, time.time() - oldest / 1e9) if oldest else 0.0
        yield GaugeMetricFamily(
            "sealward_spool_records", "Records that audit has not acknowledged yet", spool.depth
        )
        yield GaugeMetricFamily(
            "sealward_spool_capacity_records", "Records that may wait", spool.capacity
        )
        yield GaugeMetricFamily(
            "sealward_spool_oldest_seconds", "Age of the record that waits longest; 0 for none", age
        )
        yield GaugeMetricFamily(
            "sealward_spool_refused_records",
            "Records that audit refused for good and that are kept aside; has to be 0",
            spool.refused,
        )
        yield CounterMetricFamily(
            "sealward_spool_lost_records",
            "Records that could not be stored: the spool was full or its disk failed; has to be 0",
            spool.lost,
        )


class _Handler(WSGIRequestHandler):
    # The base class does these; kept quiet so that no request line reaches the log.
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = _CONNECTIONS
    credentials: Credentials
    revocations: Revocations

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._room = threading.BoundedSemaphore(_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        # A connection costs a thread before anybody has shown a certificate.
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        # The handshake happens in the connection's own thread, with the certificate of the moment,
        # and a slow client holds nobody up.
        request.settimeout(10)
        context = self.credentials.ssl_context(ssl.Purpose.CLIENT_AUTH)
        try:
            with context.wrap_socket(request, server_side=True) as secure:
                leaf = ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True) or b"")
                peer = peer_from_certificate(leaf.encode("ascii"), "")
                problem = self.revocations.problem(peer)
                # What is amiss may be read even while nobody else is let in.
                if problem is None or problem.reason is Reason.REVOCATIONS_UNKNOWN:
                    _Handler(secure, client_address, self)
        except (OSError, ssl.SSLError, SealwardError):
            return

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class MetricsListener:
    """Serves /metrics. `address` is what it listens on once started."""

    def __init__(
        self,
        registry: CollectorRegistry,
        credentials: Credentials,
        address: str,
        revocations: Revocations,
    ) -> None:
        ServerHandler.server_software = "sealward"
        host, port = split_address(address)
        self._server = _Server((host, port), _Handler)
        self._server.credentials = credentials
        self._server.revocations = revocations
        self._server.set_app(make_wsgi_app(registry))
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    def start(self) -> None:
        """Serve until stop()."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
