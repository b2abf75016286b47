"""The spool, the exporter that empties it and the recorder that fills it."""

from __future__ import annotations

import io
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Status, StatusCode
from prometheus_client import CollectorRegistry

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.exporter import ExportError, SpoolExporter, export_request
from sealward.kit.logging import get_logger
from sealward.kit.metrics import SpoolMetrics
from sealward.kit.reasons import Reason
from sealward.kit.recorder import Recorder, new_event_id
from sealward.kit.sdk_exporter import SpoolSpanExporter
from sealward.kit.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool" / "keys.db")
    yield opened
    opened.close()


def attributes(body: bytes) -> dict[str, object]:
    found: dict[str, object] = {}
    for pair in Span.FromString(body).attributes:
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        found[pair.key] = getattr(pair.value, kind)
    return found


class Audit:
    """The other side: takes spans, or fails as told. Knows what it has seen."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.failures: list[ExportError] = []
        self.bad: set[bytes] = set()
        self.partial = False
        self.took = threading.Event()

    def __call__(self, spans: Sequence[bytes]) -> int:
        if self.failures:
            raise self.failures.pop(0)
        wrong = [span for span in spans if span in self.bad]
        if wrong and not self.partial:
            raise ExportError(permanent=True)
        self.seen += [span for span in spans if span not in self.bad and span not in self.seen]
        self.took.set()
        return len(wrong)


def test_records_survive_reopening_and_numbers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    first = Spool(path)
    assert [first.append(lambda n: b"r%d" % n) for _ in range(3)] == [1, 2, 3]
    first.remove([1, 2, 3])
    first.close()
    second = Spool(path)
    assert second.depth == 0
    assert second.append(lambda n: b"r%d" % n) == 4
    assert second.peek(10, 1 << 20) == [(4, b"r4")]
    second.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_spool_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.db", capacity=2)
    spool.extend([lambda n: b"%d" % n] * 2)
    with pytest.raises(SealwardError) as caught:
        spool.append(lambda n: b"%d" % n)
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    assert spool.peek(10, 100) == [(1, b"1"), (2, b"2")]
    spool.close()


def test_two_processes_cannot_share_a_spool(tmp_path: Path, spool: Spool) -> None:
    with pytest.raises(StartupError):
        Spool(tmp_path / "spool" / "keys.db")


def test_peek_is_bounded_by_bytes_but_gives_at_least_one(spool: Spool) -> None:
    spool.extend([lambda n: bytes(1000)] * 3)
    assert len(spool.peek(10, 10)) == 1
    assert len(spool.peek(10, 2500)) == 2


def test_a_disk_that_takes_nothing_refuses_then_recovers(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s.db")
    spool.append(lambda n: b"x")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SealwardError):
            spool.append(lambda n: bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert spool.depth == 1
    assert spool.append(lambda n: bytes(100_000)) == 2
    assert [n for n, _ in spool.peek(9, 1 << 20)] == [1, 2]
    spool.close()


def shown(registry: CollectorRegistry) -> dict[str, float]:
    return {s.name: s.value for family in registry.collect() for s in family.samples}


def test_the_spool_is_seen_from_outside(tmp_path: Path) -> None:
    spool, registry = Spool(tmp_path / "s.db", capacity=2), CollectorRegistry()
    SpoolMetrics(registry, spool)
    quiet = dict.fromkeys(
        ("sealward_spool_records", "sealward_spool_oldest_seconds",
         "sealward_spool_refused_records", "sealward_spool_lost_records_total"), 0.0
    )  # fmt: skip
    assert shown(registry) == {**quiet, "sealward_spool_capacity_records": 2.0}
    # The first is an hour old, as after an outage; the age is in the record and outlives a restart.
    old = [3600, 60]
    recorder = Recorder(spool, "keys", lambda: time.time_ns() - old[0] * 1_000_000_000)
    for _ in range(2):
        recorder.record("keys.branch-open", "ok")
        old[:] = old[-1:]
    with pytest.raises(SealwardError):
        recorder.record("keys.branch-open", "ok")
    spool.close()
    assert spool.oldest() == 0
    spool, registry = Spool(tmp_path / "s.db", capacity=2), CollectorRegistry()
    SpoolMetrics(registry, spool)
    found = shown(registry)
    assert found["sealward_spool_records"] == 2
    assert 3600 <= found["sealward_spool_oldest_seconds"] < 3700
    for _ in range(3):
        with pytest.raises(SealwardError):
            spool.append(lambda n: b"x")
    spool.refuse(1)
    found = shown(registry)
    assert 60 <= found["sealward_spool_oldest_seconds"] < 160
    assert found["sealward_spool_refused_records"] == 1
    assert found["sealward_spool_lost_records_total"] == 3
    assert found["sealward_spool_records"] == 1
    spool.close()
    with pytest.raises(SealwardError):
        spool.append(lambda n: b"x")
    assert shown(registry)["sealward_spool_lost_records_total"] == 4


@pytest.mark.parametrize("body", [b"", b"x", b"\x41short", b"\x08\x01"])
def test_a_record_without_a_time_has_no_age(spool: Spool, body: bytes) -> None:
    spool.append(lambda n: body)
    assert spool.oldest() == 0


def exporter(spool: Spool, audit: Audit) -> SpoolExporter:
    return SpoolExporter(spool, audit, get_logger("test", io.StringIO()))


def test_flush_empties_the_spool_in_order(spool: Spool) -> None:
    audit = Audit()
    spool.extend([lambda n: b"%d" % n] * 5)
    assert exporter(spool, audit).flush()
    assert audit.seen == [b"1", b"2", b"3", b"4", b"5"]
    assert spool.depth == 0


@pytest.mark.parametrize("partial", [False, True])
def test_one_bad_record_does_not_hold_the_others(spool: Spool, partial: bool) -> None:
    audit = Audit()
    audit.bad, audit.partial = {b"3"}, partial
    spool.extend([lambda n: b"%d" % n] * 5)
    assert exporter(spool, audit).flush()
    assert sorted(audit.seen) == [b"1", b"2", b"4", b"5"]
    assert (spool.depth, spool.refused) == (0, 1)


def test_an_unacknowledged_batch_stays_and_is_sent_again(spool: Spool) -> None:
    audit = Audit()
    audit.failures = [ExportError(), ExportError(retry_after=0.01)]
    sender = exporter(spool, audit)
    spool.append(lambda n: b"a")
    assert not sender.flush()
    assert spool.depth == 1
    sender.start()
    assert audit.took.wait(10)
    sender.stop()
    assert audit.seen == [b"a"]


def test_recorder_writes_an_otlp_span(spool: Spool) -> None:
    recorder = Recorder(spool, "keys")
    event_id = recorder.record("keys.branch-create", "ok", actor_id="audit", target="audit-segment")
    recorder.record("keys.branch-open", "denied", reason="IDENTITY_FORBIDDEN", actor_id=None)
    (_, first), (_, second) = spool.peek(10, 1 << 20)
    request = ExportTraceServiceRequest.FromString(export_request([first, second]))
    assert len(request.resource_spans[0].scope_spans[0].spans) == 2
    span = Span.FromString(first)
    assert span.name == "keys.branch-create"
    assert len(span.trace_id) == 16
    assert span.status.code == 1
    assert attributes(first) == {
        "sealward.event.type": "keys.branch-create",
        "sealward.event.id": event_id.hex(),
        "sealward.outcome": "ok",
        "sealward.actor.id": "audit",
        "sealward.target": "audit-segment",
        "sealward.producer.id": "keys",
        "sealward.producer.instance": spool.instance,
        "sealward.producer.seq": 1,
    }
    assert attributes(second)["sealward.producer.seq"] == 2
    assert "sealward.actor.id" not in attributes(second)


def test_recorder_takes_no_attribute_outside_the_list(spool: Spool) -> None:
    recorder = Recorder(spool, "keys")
    with pytest.raises(TypeError):
        recorder.record("service.start", "ok", patient="x")
    with pytest.raises(TypeError):
        recorder.record("no.such-type", "ok")
    assert spool.depth == 0


def test_event_ids_are_uuid7() -> None:
    ids = [new_event_id(lambda: 1_700_000_000_123_000_000) for _ in range(100)]
    assert len(set(ids)) == 100
    for one in ids:
        assert one[6] >> 4 == 7
        assert one[8] >> 6 == 2
        assert int.from_bytes(one[:6], "big") == 1_700_000_000_123


def test_sdk_spans_pass_the_allow_list(spool: Spool) -> None:
    canary = "canary-7f3a"
    exporting = SpoolSpanExporter(spool, "gateway")
    provider = TracerProvider(resource=Resource({"host.name": canary}))
    provider.add_span_processor(SimpleSpanProcessor(exporting))
    tracer = provider.get_tracer(canary, canary)
    with tracer.start_as_current_span(canary) as root:
        root.set_attribute("sealward.event.type", "session.login")
        root.set_attribute("sealward.patient.reference", canary)
        root.set_attribute("sealward.actor.roles", ["clinician", "operator"])
        root.set_attribute("http.url", canary)
        root.add_event(canary, {"text": canary})
        root.set_status(Status(StatusCode.ERROR, canary))
        with tracer.start_as_current_span("child"):
            pass
    provider.shutdown()
    (_, child), (_, body) = spool.peek(10, 1 << 20)
    assert canary.encode() not in body + child
    span = Span.FromString(body)
    assert (span.name, span.status.code, span.kind) == ("session.login", 2, 1)
    assert span.trace_id == Span.FromString(child).trace_id
    assert Span.FromString(child).parent_span_id == span.span_id
    assert span.parent_span_id == b""
    assert span.end_time_unix_nano >= span.start_time_unix_nano > 0
    assert exporting.dropped == 2
    assert set(attributes(body)) == {
        "sealward.event.type",
        "sealward.actor.roles",
        "sealward.producer.id",
        "sealward.producer.instance",
        "sealward.producer.seq",
    }
