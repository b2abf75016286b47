"""OTLP ingest, the committer behind it, and the pump of the hot path."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import CollectorRegistry

from sealward.api.audit.v1.audit_pb2 import Receipt
from sealward.kit.errors import SealwardError
from sealward.kit.exporter import export_request
from sealward.kit.identity import Identity, Peer
from sealward.kit.reasons import Code, Reason
from sealward.kit.recorder import new_event_id
from sealward.kit.seam import Answer, Call
from sealward.kit.spans import attribute
from sealward.tlog.leaf import PREFIX_SIZE, parse_leaf
from services.audit.committer import Committer, MeteredAppender
from services.audit.entry import Candidate, EntryMaker, _reference
from services.audit.ingest_otlp import PART_SPANS, TraceIngest
from services.audit.log import Committed
from services.audit.metrics import AuditMetrics
from services.audit.otlpwire import ExportRequest
from services.audit.pump import AppendPump
from services.audit.spanfields import SpanError
from tests.support.audit_suite import GATEWAY, WORKLOAD, Suite, entry_bytes, span_bytes


@pytest.fixture
def metrics() -> AuditMetrics:
    return AuditMetrics(CollectorRegistry())


@pytest.fixture
def conflicts() -> list[Candidate]:
    return []


@pytest.fixture
def committer(
    suite: Suite, metrics: AuditMetrics, conflicts: list[Candidate], logger: Any
) -> Iterator[Committer]:
    made = Committer(MeteredAppender(suite.log, metrics), logger, 1000, conflicts.extend)
    made.start()
    yield made
    made.close(10)


@pytest.fixture
def ingest(suite: Suite, committer: Committer, metrics: AuditMetrics) -> TraceIngest:
    return TraceIngest(committer, suite.maker, metrics)


def request(*spans: bytes) -> ExportRequest:
    return ExportRequest.FromString(export_request(spans))


def opened(suite: Suite, index: int) -> Span:
    leaf = suite.store.leaves(index, index + 1)[0]
    return Span.FromString(suite.segments.open(leaf[:PREFIX_SIZE], parse_leaf(leaf).sealed))


def values(span: Span) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in span.attributes}


def test_one_request_makes_no_more_wait_than_a_part(
    suite: Suite, metrics: AuditMetrics, logger: Any
) -> None:
    waited: list[int] = []
    committer = Committer(
        MeteredAppender(suite.log, metrics), logger, 1000, lambda _: None, waited.append
    )
    committer.start()
    spans = [span_bytes("keys.branch-create") for _ in range(2 * PART_SPANS)]
    try:
        ingest = TraceIngest(committer, suite.maker, metrics)
        response = ingest.ingest(request(*spans, b"", b"no span"), GATEWAY)
    finally:
        committer.close(10)
    assert response.partial_success.rejected_spans == 2
    assert suite.log.head[0] == len(spans)
    assert max(waited) <= PART_SPANS


def test_spans_are_durable_when_acknowledged_and_stored_once(
    suite: Suite, ingest: TraceIngest, metrics: AuditMetrics
) -> None:
    spans = [span_bytes("keys.branch-create") for _ in range(700)]
    for _ in range(2):
        response = ingest.ingest(request(*spans), GATEWAY)
        assert not response.HasField("partial_success")
    assert suite.log.head[0] == 700
    assert metrics.repeated._value.get() == 700
    assert opened(suite, 3).name == "keys.branch-create"


def test_an_event_id_of_a_service_is_kept(suite: Suite, ingest: TraceIngest) -> None:
    event_id = new_event_id()
    ingest.ingest(
        request(span_bytes("service.start", extra={"sealward.event.id": event_id.hex()})), GATEWAY
    )
    assert suite.log.receipt(event_id)[0].index == 0


def test_spans_that_can_never_be_recorded_are_rejected_for_good(
    suite: Suite, ingest: TraceIngest
) -> None:
    good = span_bytes()
    bad = []
    for change in (
        {"trace_id": b""},
        {"trace_id": bytes(16)},
        {"span_id": b"short"},
        {"start_time_unix_nano": 0},
        {"end_time_unix_nano": 1},
        {"end_time_unix_nano": 1 << 63},
    ):
        span = Span.FromString(good)
        for name, value in change.items():
            setattr(span, name, value)
        bad.append(span.SerializeToString())
    response = ingest.ingest(request(*bad, good), GATEWAY)
    assert response.partial_success.rejected_spans == len(bad)
    assert suite.log.head[0] == 1


def test_a_taken_event_id_is_rejected_and_told(
    suite: Suite, ingest: TraceIngest, conflicts: list[Candidate]
) -> None:
    event_id = new_event_id()
    extra: dict[str, Any] = {"sealward.event.id": event_id.hex()}
    ingest.ingest(request(span_bytes(extra=extra)), GATEWAY)
    response = ingest.ingest(
        request(span_bytes(outcome="failed", extra=extra), span_bytes()), GATEWAY
    )
    assert response.partial_success.rejected_spans == 1
    assert [c.key.event_id for c in conflicts] == [event_id]
    assert suite.log.head[0] == 2


def test_an_outsider_cannot_speak_for_us(suite: Suite, ingest: TraceIngest) -> None:
    event_id = new_event_id()
    forged = span_bytes(
        "inference.predict",
        extra={
            "sealward.event.id": event_id.hex(),
            "sealward.producer.id": "gateway",
            "rpc.method": "Store",
        },
    )
    ingest.ingest(request(forged), WORKLOAD)
    ((_, row),) = suite.query()
    assert (row.type, row.actor, row.model, row.purpose) == ("otel.span", "pacs", "", "")
    assert row.event_id != event_id
    span = opened(suite, 0)
    assert span.name == "otel.span"
    assert values(span) == {
        "rpc.method": "Store",
        "sealward.producer.id": WORKLOAD.uri,
        "sealward.actor.id": "pacs",
        "sealward.actor.kind": "workload",
    }
    # Nor occupy the place of another producer's span with the same ids.
    assert not ingest.ingest(request(forged), GATEWAY).HasField("partial_success")
    assert suite.log.head[0] == 2


def test_overload_is_unavailable_with_a_time_to_wait(suite: Suite, logger: Any) -> None:
    entered, release = threading.Event(), threading.Event()

    class Slow:
        def append(self, candidates: Sequence[Candidate], **how: bool) -> Committed:
            entered.set()
            assert release.wait(20)
            return suite.log.append(candidates, **how)

    committer = Committer(Slow(), logger, 2, lambda _conflicts: None)
    committer.start()
    waiting = threading.Thread(target=committer.submit, args=([suite.entry()],))
    waiting.start()
    assert entered.wait(20)
    committer.submit_later([suite.entry()])
    with pytest.raises(SealwardError) as caught:
        committer.submit([suite.entry()])
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.retry_after
    release.set()
    waiting.join(20)
    committer.close(20)
    assert suite.log.head[0] == 2


def test_many_callers_share_batches(suite: Suite, committer: Committer) -> None:
    barrier = threading.Barrier(16)
    indices: list[int] = []
    candidates = [[suite.entry() for _ in range(5)] for _ in range(16)]

    def export(mine: list[Candidate]) -> None:
        barrier.wait(20)
        results = committer.submit(mine)
        indices.extend(r.index for r in results if not isinstance(r, SealwardError))

    threads = [threading.Thread(target=export, args=(mine,)) for mine in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(indices) == list(range(80))


def call(number: int, body: bytes, identity: Identity = GATEWAY) -> Call:
    return Call(number, "Append", Peer(identity, bytes(32), "ipv4:1"), {}, float("inf"), body)


class Wire:
    """A front of prepared batches."""

    def __init__(self, batches: list[list[Call]]) -> None:
        self.batches = [*batches, []]
        self.answers: list[Answer] = []
        self.shared: list[bytes] = []

    def recv(self) -> list[Call]:
        return self.batches.pop(0)

    def reply(self, answers: Sequence[Answer], shared: bytes = b"") -> None:
        self.answers += answers
        self.shared.append(shared)

    def cancelled(self, call_id: int) -> bool:
        return False


def test_the_pump_answers_each_call_its_own(suite: Suite, logger: Any) -> None:
    refused: list[Reason] = []
    conflicts: list[Candidate] = []
    event_id = new_event_id()
    wire = Wire(
        [
            [
                call(1, entry_bytes(event_id=event_id)),
                call(2, b"\xff"),
                call(3, entry_bytes(event_id=b"short")),
                call(4, entry_bytes()),
            ],
            [call(5, entry_bytes(event_id=event_id, binding=b"o" * 32)), call(6, entry_bytes())],
        ]
    )
    pump = AppendPump(wire, suite.log, suite.maker, logger, conflicts.extend, refused.append)
    pump.start()
    pump.join(20)
    by_id = {answer.id: answer for answer in wire.answers}
    assert sorted(by_id) == [1, 2, 3, 4, 5, 6]
    receipts = [Receipt.FromString(by_id[n].body) for n in (1, 4, 6)]
    assert [r.log_index for r in receipts] == [0, 1, 2]
    errors = {n: by_id[n].error for n in (2, 3, 5)}
    assert [e.reason for e in errors.values() if e] == [
        Reason.REQUEST_MALFORMED, Reason.FIELD_INVALID, Reason.ALREADY_EXISTS,
    ]  # fmt: skip
    assert errors[3] is not None
    assert errors[3].field == "event_id"
    assert len(conflicts) == 1
    assert refused == [Reason.REQUEST_MALFORMED, Reason.FIELD_INVALID]
    assert wire.shared == [*wire.shared[:1], suite.log.head[1]]


def test_the_pump_survives_a_failure_of_its_own(suite: Suite, logger: Any) -> None:
    class Broken:
        def append(self, candidates: Sequence[Candidate], **how: bool) -> Committed:
            raise RuntimeError("patient Miller")

    wire = Wire([[call(1, entry_bytes())], [call(2, entry_bytes())]])
    pump = AppendPump(wire, Broken(), suite.maker, logger, lambda _c: None)
    pump.start()
    pump.join(20)
    assert [a.error.reason for a in wire.answers if a.error] == [Reason.INTERNAL] * 2
    assert all("Miller" not in a.error.message for a in wire.answers if a.error)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"event_id": bytes(16)}, "event_id"),
        ({"binding": b"x"}, "binding"),
        ({"span": b"\x0a\x7f"}, "span"),
        ({"span": span_bytes(extra={"sealward.outcome": "maybe"})}, "sealward.outcome"),
        ({"span": span_bytes(extra={"sealward.event.type": "NOT A TYPE"})}, "sealward.event.type"),
        ({"patient": "x" * 300}, "patient"),
        ({"input_digest": b"short"}, "input_digest"),
        ({"output_digest": b"short"}, "output_digest"),
    ],
)
def test_a_wrong_entry_is_refused_by_its_field(
    suite: Suite, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(SealwardError) as caught:
        suite.maker.appended(entry_bytes(**changes), GATEWAY)
    assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, field)


def test_a_releasing_entry_is_at_most_two_kib(suite: Suite) -> None:
    long = {f"sealward.{n}": "x" * 250 for n in (
        "reason", "target", "organization", "policy.id", "model.version", "runtime.digest",
        "data.origin", "data.category",
    )}  # fmt: skip
    with pytest.raises(SealwardError) as caught:
        suite.maker.appended(entry_bytes(span=span_bytes(extra=dict(long))), GATEWAY)
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    del long["sealward.target"], long["sealward.reason"], long["sealward.policy.id"]
    done = suite.log.append([suite.entry(span=span_bytes(extra=dict(long)))])
    (place,) = done.results
    assert not isinstance(place, SealwardError)
    assert 1500 < len(place.leaf) <= 2048


@pytest.mark.parametrize("length", [1, 100, 127, 128, 256])
def test_the_patient_reference_is_an_attribute_like_the_others(length: int) -> None:
    patient = "p" * length
    assert _reference(patient.encode()) == attribute("sealward.patient.reference", patient)


def test_a_request_is_taken_apart_as_protobuf_does() -> None:
    # As protobuf writes it, fields in the order of their numbers.
    spans = [Span.FromString(span_bytes(start=n)).SerializeToString() for n in range(1, 4)]
    whole = ExportTraceServiceRequest.FromString(export_request(spans[:2]))
    resource = whole.resource_spans[0]
    resource.resource.attributes.add(key="host.name").value.string_value = "left behind"
    resource.scope_spans[0].scope.name = "left behind"
    resource.scope_spans[0].schema_url = "left behind"
    other = whole.resource_spans.add().scope_spans.add().spans.add()
    other.MergeFromString(spans[2])
    body = whole.SerializeToString()
    assert ExportRequest.FromString(body).spans == spans
    assert ExportRequest.FromString(b"").spans == []
    for end in range(1, len(body)):
        try:
            ExportTraceServiceRequest.FromString(body[:end])
        except DecodeError:
            with pytest.raises(DecodeError):
                ExportRequest.FromString(body[:end])
    with pytest.raises(DecodeError):
        ExportRequest.FromString(b"\x08\x01")


def test_spans_that_are_alike_give_what_each_would_give_alone(suite: Suite) -> None:
    many = [span_bytes(start=n * 1_000_000) for n in range(1, 6)]
    made = [suite.maker.exported(body, WORKLOAD) for body in many]
    alone = [open_maker(suite).exported(body, WORKLOAD) for body in many]
    assert [(c.prefix, c.span, c.row, c.dropped) for c in made] == [
        (c.prefix, c.span, c.row, c.dropped) for c in alone
    ]
    # The same attributes under another producer are another producer's.
    theirs = [suite.maker.exported(body, GATEWAY) for body in many]
    assert {c.row.producer for c in theirs if c.row} == {"gateway"}
    assert {c.row.type for c in theirs if c.row} == {"inference.predict"}
    bad = many[4].replace((5_000_000).to_bytes(8, "little"), bytes(8), 1)
    with pytest.raises(SpanError):
        suite.maker.exported(bad, WORKLOAD)


def open_maker(suite: Suite) -> EntryMaker:
    return EntryMaker(suite.index)
