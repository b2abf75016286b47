"""Audit under pressure: refused at once with a time to wait, and nothing lost or kept twice."""

from __future__ import annotations

import itertools
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sealward.api.audit.v1 import audit_pb2
from sealward.api.common.v1.batch_pb2 import Call, Reply
from sealward.kit.exporter import EXPORT_METHOD, export_request
from sealward.kit.reasons import Code, Reason
from sealward.kit.recorder import new_event_id
from sealward.kit.wire import bytes_field
from tests.integration.test_audit_service import AppendStream, Pair, outcome
from tests.support.audit_suite import entry_bytes, span_bytes
from tests.support.inference_suite import until

LIMIT = 64


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("audit"), WAITING_ENTRIES=LIMIT)
    try:
        yield made.start()
    finally:
        made.end()


def retry_seconds(error: grpc.RpcError) -> float | None:
    """What the RetryInfo of a refusal says; None without one."""
    trailers = dict(outcome(error).trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin", b"")
    assert isinstance(details, bytes)
    info = RetryInfo()
    for detail in Status.FromString(details).details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToMilliseconds()) / 1000
    return None


class Flood:
    """Sends requests without waiting for answers; gathers the replies."""

    def __init__(self, pair: Pair) -> None:
        self.stream = AppendStream(pair.to_audit().get())
        self.replies: dict[int, Reply] = {}
        self._ids = itertools.count(1)

    def send(self, bodies: Sequence[bytes]) -> list[int]:
        calls = [Call(id=next(self._ids), method="Append", body=body) for body in bodies]
        self.stream._out.put(audit_pb2.AppendRequest(calls=calls))
        return [call.id for call in calls]

    def gather(self, count: int) -> None:
        while len(self.replies) < count:
            for reply in next(self.stream.answers).replies:
                assert reply.id not in self.replies
                self.replies[reply.id] = reply


def test_appends_beyond_the_queue_are_refused_with_a_time_to_wait(pair: Pair) -> None:
    ids = [new_event_id() for _ in range(6000)]
    bodies = [entry_bytes(event_id=event_id) for event_id in ids]
    flood = Flood(pair)
    numbers = [n for at in range(0, 6000, 1000) for n in flood.send(bodies[at : at + 1000])]
    flood.gather(6000)
    by_call = [flood.replies[number] for number in numbers]
    refused = [reply for reply in by_call if reply.code]
    assert refused, "6,000 entries never filled a queue of 64"
    assert {(r.code, r.reason) for r in refused} == {
        (int(Code.UNAVAILABLE), int(Reason.AUDIT_UNAVAILABLE))
    }
    assert all(reply.retry_ms == 500 for reply in refused)
    # Sent again by whoever was refused: everything is there once, what was taken keeps its place.
    places = {
        event_id: audit_pb2.Receipt.FromString(reply.body).log_index
        for event_id, reply in zip(ids, by_call, strict=True)
        if not reply.code
    }
    again = AppendStream(pair.to_audit().get())
    for at in range(0, 6000, 200):
        replies, _ = again.ask(bodies[at : at + 200])
        for event_id, reply in zip(ids[at : at + 200], replies, strict=True):
            assert reply.code == 0, reply.message
            index = audit_pb2.Receipt.FromString(reply.body).log_index
            assert places.setdefault(event_id, index) == index
    assert len(set(places.values())) == 6000
    again.close()
    flood.stream.close()


def test_exports_beyond_the_queue_are_unavailable_and_never_a_partial_success(pair: Pair) -> None:
    call = pair.to_audit("inference").get().unary_unary(EXPORT_METHOD)
    refusals: list[tuple[grpc.StatusCode, float | None]] = []
    enough = threading.Event()
    sent = Counter[str]()

    def export(number: int) -> None:
        for turn in itertools.count():
            spans = [span_bytes("service.start", start=1 + number * 10**9 + turn * 1000 + n)
                     for n in range(LIMIT)]  # fmt: skip
            while True:
                try:
                    answer = call(export_request(spans), timeout=20, wait_for_ready=True)
                except grpc.RpcError as error:
                    refusals.append((error.code(), retry_seconds(error)))
                    enough.set()
                    continue
                response = ExportTraceServiceResponse.FromString(answer)
                assert not response.HasField("partial_success")
                break
            sent["spans"] += LIMIT
            if enough.is_set():
                return

    before = len(pair.events(type="service.start", limit=10_000))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(export, range(8)))
    assert {code for code, _ in refusals} == {grpc.StatusCode.UNAVAILABLE}
    assert all(delay and delay > 0 for _, delay in refusals)
    # What was refused was sent again and is there once.
    assert len(pair.events(type="service.start", limit=10_000)) == before + sent["spans"]


def test_a_request_above_four_mib_is_refused_for_good(pair: Pair) -> None:
    call = pair.to_audit("inference").get().unary_unary(EXPORT_METHOD)
    # As large as a request may be: one span that is none, and a field that nobody knows.
    spans = export_request([b"\x0a" + b"\xff" * 100])
    filler = bytes_field(1000, bytes((4 << 20) - len(spans) - 6))
    largest = spans + filler
    assert len(largest) == 4 << 20
    answer = ExportTraceServiceResponse.FromString(call(largest, timeout=20, wait_for_ready=True))
    assert answer.partial_success.rejected_spans == 1
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes((4 << 20) + 1), timeout=20, compression=compression, wait_for_ready=True)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_seconds(caught.value) is None


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    pair = Pair(tmp_path).start()
    try:
        acknowledged = 0
        for _ in range(3):
            call = pair.to_audit("inference").get().unary_unary(EXPORT_METHOD)
            for turn in range(5):
                spans = [span_bytes("service.stop") for _ in range(40)]
                call(export_request(spans), timeout=20, wait_for_ready=True)
                acknowledged += 40
                if turn == 4:
                    # Not a moment after the acknowledgement.
                    assert pair.audit.end(signal.SIGKILL) == -signal.SIGKILL
            pair.audit.start()
        until(lambda: len(pair.events(type="service.stop", limit=10_000)) == acknowledged)
    finally:
        pair.end()
