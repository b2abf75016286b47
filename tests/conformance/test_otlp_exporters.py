"""OpenTelemetry's own exporters, for Python and for Go, send to audit with a client certificate.

They are set up by the environment variables of the OTLP specification alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sealward.api.keys.v1.keys_pb2 import IssueCertificateRequest
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.kit.channel import Channels
from sealward.kit.enroll import enroll
from sealward.kit.tls import Credentials, key_to_pem, make_csr, new_key
from tests.integration.test_audit_service import Pair
from tests.support import tlog_go
from tests.support.inference_suite import until

GO_SOURCE = Path(__file__).parent / "otlp_go"
WORKLOAD = "spiffe://sealward.local/workload/pacs"
CANARY = "canary-otlp-6610"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("audit"), WAITING_ENTRIES=64)
    try:
        yield made.start()
    finally:
        made.end()


def certified(pair: Pair, spiffe_id: str) -> dict[str, str]:
    """Have a certificate issued; return the settings of a stock exporter that uses it."""
    credentials = Credentials()
    credentials.install(enroll(pair.folder / "enroll", "gateway", 20))
    channels = Channels(credentials, pair.keys.address, "keys.sealward.local")
    key = new_key()
    csr = make_csr(key, "pacs").public_bytes(Encoding.DER)
    issued = KeysServiceStub(channels.get()).IssueCertificate(
        IssueCertificateRequest(csr=csr, spiffe_id=spiffe_id), timeout=20, wait_for_ready=True
    )
    channels.close()
    folder = pair.folder / spiffe_id.rpartition("/")[2]
    folder.mkdir(exist_ok=True)
    (folder / "key.pem").write_bytes(key_to_pem(key))
    (folder / "cert.pem").write_text(issued.certificate_pem)
    (folder / "ca.pem").write_text(issued.bundle_pem)
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://{pair.audit.address}",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(folder / "ca.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(folder / "key.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(folder / "cert.pem"),
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }


@pytest.fixture
def settings(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = certified(pair, WORKLOAD)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def some_spans(count: int) -> Sequence[ReadableSpan]:
    """Spans as an application makes them, with what an application puts into them."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer(CANARY)
    for number in range(count):
        with tracer.start_as_current_span(CANARY) as span:
            span.set_attribute("patient", CANARY)
            span.set_attribute("sealward.rows", number)
            span.add_event(CANARY)
    return memory.get_finished_spans()


def stored(pair: Pair) -> int:
    return len(pair.events(type="otel.span", limit=10_000))


def test_a_stock_exporter_and_its_batches_arrive(pair: Pair, settings: dict[str, str]) -> None:
    before = stored(pair)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer(CANARY)
    with tracer.start_as_current_span(CANARY) as outer:
        for _ in range(99):
            with tracer.start_as_current_span("inner") as inner:
                inner.set_attribute("patient", CANARY)
    assert provider.force_flush(60_000)
    provider.shutdown()
    assert stored(pair) == before + 100
    trace = outer.get_span_context().trace_id.to_bytes(16, "big")
    mine = pair.events(trace_id=trace, limit=1000)
    assert len(mine) == 100
    assert {(e.type, e.producer, e.actor, e.actor_kind) for e in mine} == {
        ("otel.span", WORKLOAD, "pacs", "workload")
    }
    assert CANARY not in str(pair.opened(mine[0].event_id))


def test_what_is_exported_again_is_stored_once(pair: Pair, settings: dict[str, str]) -> None:
    before = stored(pair)
    spans = some_spans(30)
    exporter = OTLPSpanExporter()
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    # Of another process, after a restart.
    assert OTLPSpanExporter().export(spans[10:]) is SpanExportResult.SUCCESS
    assert stored(pair) == before + 30


def test_under_pressure_everything_arrives_once(
    pair: Pair, settings: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    before = stored(pair)
    batches = [some_spans(64) for _ in range(12)]

    def export(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return OTLPSpanExporter(timeout=60).export(spans)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(export, batches))
    assert results == [SpanExportResult.SUCCESS] * 12
    # Some were refused on the way, and said so themselves.
    assert "UNAVAILABLE" in caplog.text
    assert stored(pair) == before + 12 * 64


def test_an_outage_is_waited_out(pair: Pair, settings: dict[str, str]) -> None:
    before = stored(pair)
    spans = some_spans(20)
    assert OTLPSpanExporter().export(spans[:10]) is SpanExportResult.SUCCESS
    pair.audit.end(signal.SIGKILL)
    results: list[SpanExportResult] = []
    thread = threading.Thread(
        target=lambda: results.append(OTLPSpanExporter(timeout=60).export(spans))
    )
    thread.start()
    pair.audit.start()
    thread.join(90)
    assert results == [SpanExportResult.SUCCESS]
    until(lambda: stored(pair) == before + 20)


def test_without_the_right_certificate_nothing_is_taken(
    pair: Pair, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(pair)
    user = certified(pair, "spiffe://sealward.local/user/ann")
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    assert OTLPSpanExporter(timeout=5).export(some_spans(3)) is SpanExportResult.FAILURE
    denied = pair.events(type="access.denied", user="ann")
    assert denied
    assert denied[0].reason == "IDENTITY_FORBIDDEN"
    # A client without a certificate gets no further than the handshake.
    ca = Path(settings["OTEL_EXPORTER_OTLP_CERTIFICATE"]).read_bytes()
    nobody = OTLPSpanExporter(credentials=grpc.ssl_channel_credentials(ca), timeout=3)
    assert nobody.export(some_spans(3)) is SpanExportResult.FAILURE
    assert stored(pair) == before


def test_the_exporter_for_go(pair: Pair, settings: dict[str, str], tmp_path: Path) -> None:
    program = tlog_go.build(tmp_path, source=GO_SOURCE)
    before = stored(pair)
    done = subprocess.run(
        [program, "300"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    traces = done.stdout.split()
    assert len(traces) == 300
    assert stored(pair) == before + 300
    (event,) = pair.events(trace_id=bytes.fromhex(traces[7]))
    assert (event.type, event.producer) == ("otel.span", WORKLOAD)
    assert "canary" not in str(pair.opened(event.event_id))
