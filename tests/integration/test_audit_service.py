"""Real audit and keys processes over mTLS: append, review, OTLP, refusals, restarts."""

from __future__ import annotations

import io
import itertools
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.api.common.v1.batch_pb2 import Call, Reply
from sealward.kit.channel import Channels
from sealward.kit.enroll import enroll, write_private
from sealward.kit.exporter import EXPORT_METHOD, SpoolExporter, export_request, otlp_sender
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.kit.recorder import Recorder, new_event_id
from sealward.kit.sdk_exporter import SpoolSpanExporter
from sealward.kit.spool import Spool
from sealward.kit.tls import Credentials
from sealward.seal.rootkey import new_identity
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.leaf import parse_leaf
from sealward.tlog.logdir import LogReport, verify_directory
from sealward.tlog.merkle import leaf_hash, split_hashes, verify_consistency, verify_inclusion
from sealward.tlog.note import parse_vkeys
from tests.support import tlog_go
from tests.support.audit_suite import entry_bytes, span_bytes
from tests.support.inference_suite import Service, until

CANARY = "MRN-canary-5519"


class Pair:
    """Keys and audit, and channels with the certificates of others."""

    def __init__(self, folder: Path, **settings: object) -> None:
        """Begin nothing yet; `settings` are of the audit service."""
        self.folder = folder
        write_private(folder / "unlock", new_identity().encode())
        self.keys = Service("keys", folder, UNLOCK_FILE=folder / "unlock")
        self.audit = Service(
            "audit",
            folder,
            KEYS_ADDRESS=self.keys.address,
            AUDIT_ADDRESS="",
            START_SECONDS=20,
            **settings,
        )
        self.channels: dict[str, Channels] = {}

    def start(self) -> Pair:
        self.keys.start()
        self.audit.start()
        return self

    def end(self) -> None:
        for channels in self.channels.values():
            channels.close()
        self.audit.end()
        self.keys.end()

    def to_audit(self, name: str = "gateway") -> Channels:
        if name not in self.channels:
            credentials = Credentials()
            credentials.install(enroll(self.folder / "enroll", name, 20))
            self.channels[name] = Channels(credentials, self.audit.address, "audit.sealward.local")
        return self.channels[name]

    def stub(self, name: str = "admin") -> AuditServiceStub:
        return AuditServiceStub(self.to_audit(name).get())

    def events(self, **query: object) -> list[audit_pb2.EventSummary]:
        request = audit_pb2.QueryEventsRequest(**query)  # type: ignore[arg-type]
        return list(self.stub().QueryEvents(request, timeout=20, wait_for_ready=True).events)

    def opened(self, event_id: bytes) -> dict[str, str]:
        request = audit_pb2.GetEventRequest(event_id=event_id)
        event = self.stub().GetEvent(request, timeout=20, wait_for_ready=True)
        pairs = Span.FromString(event.span).attributes
        return {pair.key: pair.value.string_value for pair in pairs}

    def checkpoint(self, note: bytes) -> Checkpoint:
        vkeys = parse_vkeys((self.audit.data / "log.vkey").read_text())
        return open_checkpoint(note, vkeys)

    def verify(self) -> LogReport:
        vkeys = parse_vkeys((self.audit.data / "log.vkey").read_text())
        return verify_directory(self.audit.data / "log", vkeys)


class AppendStream:
    """The stream of batches, as the gateway holds it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._out: queue.SimpleQueue[audit_pb2.AppendRequest | None] = queue.SimpleQueue()
        self._ids = itertools.count(1)
        self.answers = AuditServiceStub(channel).Append(
            iter(self._out.get, None), wait_for_ready=True
        )

    def ask(self, bodies: Sequence[bytes]) -> tuple[list[Reply], bytes]:
        calls = [Call(id=next(self._ids), method="Append", body=body) for body in bodies]
        self._out.put(audit_pb2.AppendRequest(calls=calls))
        answer = next(self.answers)
        by_id = {reply.id: reply for reply in answer.replies}
        return [by_id[call.id] for call in calls], answer.checkpoint

    def close(self) -> None:
        self._out.put(None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("audit"))
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture
def stream(pair: Pair) -> Iterator[AppendStream]:
    opened = AppendStream(pair.to_audit().get())
    yield opened
    opened.close()


def verify_receipt(reply: Reply, checkpoint: Checkpoint) -> audit_pb2.Receipt:
    assert reply.code == 0, reply.message
    receipt = audit_pb2.Receipt.FromString(reply.body)
    path = split_hashes(receipt.path)
    verify_inclusion(
        leaf_hash(receipt.leaf), receipt.log_index, checkpoint.size, path, checkpoint.root
    )
    return receipt


def outcome(error: grpc.RpcError) -> grpc.Call:
    """What a call raises is RpcError and Call in one; the type stubs know no such class."""
    return cast("grpc.Call", error)


def reason_of(raised: grpc.RpcError) -> str:
    error = outcome(raised)
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    info = ErrorInfo()
    assert isinstance(details, bytes)
    assert Status.FromString(details).details[0].Unpack(info)
    return str(info.reason)


def test_appended_entries_have_receipts_and_can_be_reviewed(
    pair: Pair, stream: AppendStream
) -> None:
    event_id, binding = new_event_id(), b"b" * 32
    replies, note = stream.ask(
        [
            entry_bytes(event_id=event_id, binding=binding, patient=CANARY),
            entry_bytes(event_id=b"bad"),
            entry_bytes(),
        ]
    )
    checkpoint = pair.checkpoint(note)
    first = verify_receipt(replies[0], checkpoint)
    verify_receipt(replies[2], checkpoint)
    assert replies[1].reason == Reason.FIELD_INVALID
    assert replies[1].field == "event_id"
    assert parse_leaf(first.leaf).binding == binding

    (row,) = pair.events(patient=CANARY, type="inference.*")
    assert (row.event_id, row.log_index) == (event_id, first.log_index)
    assert CANARY not in row.patient
    values = pair.opened(event_id)
    assert values["sealward.patient.reference"] == CANARY
    assert values["sealward.producer.id"] == "gateway"

    receipt = pair.stub("gateway").GetReceipt(
        audit_pb2.GetReceiptRequest(event_id=event_id), timeout=20
    )
    newest = pair.checkpoint(receipt.checkpoint)
    verify_receipt(Reply(body=receipt.receipt.SerializeToString()), newest)
    proofs = pair.stub("gateway").GetConsistency(
        audit_pb2.GetConsistencyRequest(sizes=[checkpoint.size, newest.size]), timeout=20
    )
    verify_consistency(
        checkpoint.size, newest.size, split_hashes(proofs.proofs[0]), checkpoint.root, newest.root
    )

    # Who looked is in the log, with whom they looked at.
    kinds = [e.type for e in pair.events(user="local")]
    assert kinds[:3] == ["audit.query", "audit.read", "audit.query"] or set(kinds) >= {
        "audit.query", "audit.read",
    }  # fmt: skip
    assert any(e.patient == row.patient for e in pair.events(type="audit.query"))


def test_repetition_gets_the_same_place_and_a_taken_id_is_recorded(
    pair: Pair, stream: AppendStream
) -> None:
    event_id = new_event_id()
    body = entry_bytes(event_id=event_id)
    places = []
    for _ in range(2):
        replies, note = stream.ask([body])
        places.append(verify_receipt(replies[0], pair.checkpoint(note)).log_index)
    assert places[0] == places[1]
    replies, _ = stream.ask([entry_bytes(event_id=event_id, binding=b"x" * 32)])
    assert replies[0].reason == Reason.ALREADY_EXISTS
    until(
        lambda: any(
            pair.opened(e.event_id)["sealward.target"] == event_id.hex()
            for e in pair.events(type="audit.conflict")
        )
    )


@pytest.mark.parametrize("name", ["inference"])
def test_who_may_not_is_refused_and_recorded(pair: Pair, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pair.stub(name).QueryEvents(audit_pb2.QueryEventsRequest(), timeout=20, wait_for_ready=True)
    assert reason_of(caught.value) == "IDENTITY_FORBIDDEN"
    event = pair.events(type="access.denied", user=name)[0]
    assert (event.outcome, event.reason) == ("denied", "IDENTITY_FORBIDDEN")
    trailers = dict(outcome(caught.value).trailing_metadata() or ())
    assert trailers["sealward-event-id"] == event.event_id.hex()
    with pytest.raises(grpc.RpcError) as refused:
        next(AppendStream(pair.to_audit("admin").get()).answers)
    assert reason_of(refused.value) == "IDENTITY_FORBIDDEN"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"outcome": "maybe"}, "outcome"),
        ({"limit": 10_001}, "limit"),
        ({"since_unix_nano": 1 << 63}, "since_unix_nano"),
        # Nobody would be found, and nobody could know why.
        ({"patient": "MRN-1 "}, "patient"),
        ({"patient": "Müller"}, "patient"),
        ({"patient": "1" * 129}, "patient"),
    ],
)
def test_a_bad_query_names_its_field(pair: Pair, request_: dict[str, object], field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pair.events(**request_)
    assert outcome(caught.value).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (outcome(caught.value).details() or "")


def test_spooled_events_and_sdk_spans_arrive_once(pair: Pair, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db")
    event_id = Recorder(spool, "inference").record("model.load", "ok", model_name="spooled")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SpoolSpanExporter(spool, "inference")))
    with provider.get_tracer("t").start_as_current_span(CANARY) as span:
        span.set_attribute("sealward.model.name", "spooled")
        span.set_attribute("patient", CANARY)
    provider.shutdown()
    log = get_logger("test", io.StringIO())
    sender = SpoolExporter(spool, otlp_sender(pair.to_audit("inference")), log)
    waiting = [body for _, body in spool.peek(10, 1 << 20)]
    assert sender.flush()
    assert (spool.depth, spool.refused) == (0, 0)
    # The acknowledgement was lost: the exporter sends again.
    spool.extend([lambda _n, body=body: body for body in waiting])  # type: ignore[misc]
    assert sender.flush()
    found = pair.events(model="spooled")
    assert sorted(e.type for e in found) == ["model.load", "otel.span"]
    assert event_id in [e.event_id for e in found]
    for event in found:
        assert CANARY not in str(pair.opened(event.event_id))
    sender.stop()


def test_otlp_takes_gzip_and_says_what_can_never_be_recorded(pair: Pair) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes]
    call = pair.to_audit("inference").get().unary_unary(EXPORT_METHOD)
    size = len(pair.events(type="service.*", limit=1000))
    spans = [span_bytes("service.start") for _ in range(100)]
    answer = call(
        export_request([*spans, b"\x0a\x01x"]),
        timeout=20,
        compression=grpc.Compression.Gzip,
        wait_for_ready=True,
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    response = ExportTraceServiceResponse.FromString(answer)
    assert response.partial_success.rejected_spans == 1
    assert len(pair.events(type="service.*", limit=1000)) == size + 100


def test_the_published_log_catches_up_and_verifies(pair: Pair, stream: AppendStream) -> None:
    _, note = stream.ask([entry_bytes() for _ in range(250)])
    wanted = pair.checkpoint(note)
    until(
        lambda: (
            pair.checkpoint((pair.audit.data / "log/checkpoint").read_bytes()).size >= wanted.size
        )
    )
    report = pair.verify()
    assert report.origin == wanted.origin
    assert report.unknown == ()
    assert report.origin.startswith("sealward.local/")


def test_nothing_of_a_patient_lies_in_clear(pair: Pair) -> None:
    files = [path for path in pair.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
    assert all(p.stat().st_mode & 0o077 == 0 for p in pair.audit.data.rglob("*"))


def test_killed_under_load_everything_acknowledged_is_there_once(tmp_path: Path) -> None:
    pair = Pair(tmp_path).start()
    try:
        promised: dict[bytes, int] = {}
        notes: list[bytes] = []
        for _ in range(3):
            stream = AppendStream(pair.to_audit().get())
            for number in itertools.count():
                ids = [new_event_id() for _ in range(8)]
                if number == 20:
                    assert pair.audit.process is not None
                    pair.audit.process.send_signal(signal.SIGKILL)
                try:
                    replies, note = stream.ask([entry_bytes(event_id=i) for i in ids])
                except grpc.RpcError:
                    break
                notes.append(note)
                for event_id, reply in zip(ids, replies, strict=True):
                    receipt = verify_receipt(reply, pair.checkpoint(note))
                    promised[event_id] = receipt.log_index
            assert pair.audit.end(signal.SIGKILL) == -signal.SIGKILL
            pair.audit.start()
        assert len(promised) >= 3 * 20 * 8
        known = [pair.checkpoint(note) for note in notes]
        vkeys = parse_vkeys((pair.audit.data / "log.vkey").read_text())
        until(
            lambda: (
                pair.checkpoint((pair.audit.data / "log/checkpoint").read_bytes()).size
                >= known[-1].size
            )
        )
        verify_directory(pair.audit.data / "log", vkeys, known=known)
        found = {e.event_id: e.log_index for e in pair.events(limit=10_000, type="inference.*")}
        assert {event_id: found[event_id] for event_id in promised} == promised
    finally:
        pair.end()
    # Stopped, it has published all of its log.
    program, data = tlog_go.build(tmp_path), pair.audit.data
    status, output = tlog_go.verify(program, data / "log", data / "log.vkey")
    assert status == 0, output


def test_keys_away_no_start_then_recovery(tmp_path: Path) -> None:
    pair = Pair(tmp_path).start()
    try:
        stream = AppendStream(pair.to_audit().get())
        first, _ = stream.ask([entry_bytes(patient="p")])
        pair.keys.end(signal.SIGKILL)
        # What is leased goes on.
        second, note = stream.ask([entry_bytes(patient="p")])
        verify_receipt(second[0], pair.checkpoint(note))
        assert first[0].code == 0
        pair.audit.end()
        process = pair.audit.launch()
        until(lambda: process.poll() is not None or pair.keys.process is not None or waiting(pair))
        pair.keys.start()
        until(lambda: pair.audit.count("started") == 2)
        assert len(pair.events(patient="p", type="inference.*")) == 2
    finally:
        pair.end()


def waiting(pair: Pair) -> bool:
    """The new process has asked for its certificate."""
    return (pair.folder / "enroll" / "audit.csr").exists()


def test_a_damaged_store_ends_the_start_with_one_line(tmp_path: Path) -> None:
    pair = Pair(tmp_path).start()
    try:
        pair.audit.end()
        store = pair.audit.data / "log.db"
        damaged = bytearray(store.read_bytes())
        damaged[:100] = bytes(100)
        store.write_bytes(damaged)
        process = pair.audit.launch()
        assert process.wait(30) == 1
        lines = [x for x in pair.audit.log.read_text().splitlines() if x.startswith("error: ")]
        assert lines == [f"error: the audit store {store} cannot be opened (SQLITE_NOTADB)"]
    finally:
        pair.end()


def test_an_unknown_setting_ends_the_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.audit"],
        env={"SEALWARD_AUDIT_NO_SUCH": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "error: unknown setting SEALWARD_AUDIT_NO_SUCH\n"
