"""What the chassis reads from other processes: wire format, batches, statuses, names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sealward.api.audit.v1.audit_pb2 import AppendRequest, AppendResponse
from sealward.api.common.v1.batch_pb2 import Call, Reply
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from sealward.client.status import _details
from sealward.kit.calllist import Begins, Ended, LineError, Sent, Skipped, read_line, write_line
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.exporter import ExportError, _classify, otlp_sender
from sealward.kit.grpcio_front import BatchFront, _Stream
from sealward.kit.grpcio_upstream import BatchUpstream
from sealward.kit.grpcio_upstream import _Stream as OutStream
from sealward.kit.health import Health
from sealward.kit.identity import Peer, PeerReader, parse_identity, peer_from_certificate
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.kit.revocation import Revocations
from sealward.kit.spans import parse_traceparent
from sealward.kit.spool import _made_at
from sealward.kit.statement import join, sign, verify
from sealward.kit.status import DETAILS_KEY, details, reason_of
from sealward.kit.tls import load_material
from sealward.kit.wire import WireError, fields, last, oip_head, oip_string_parameter
from services.gateway.exchange import reply_error
from services.gateway.remote import _from_details
from tests.fuzz.harness import target
from tests.fuzz.targets.audit import _spans
from tests.support.audit_suite import entry_bytes
from tests.support.issuing import material

_LOG = get_logger("fuzz", __import__("io").StringIO())
_PEER = Peer(parse_identity("spiffe://sealward.local/service/gateway"), bytes(32), "ipv4:1")


def _request() -> bytes:
    request = ModelInferRequest(model_name="breast-cancer", model_version="1", id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(bytes(8))
    request.parameters["p"].string_param = "v"
    return request.SerializeToString()


@target(WireError, seeds=lambda: [_request(), *_spans(), b"\x0b\x08\x01\x0c"])
def wire_fields(data: bytes) -> None:
    """Fields of any message, and the last one of a number."""
    list(fields(data))
    last(data, 1)


@target(WireError, seeds=lambda: [_request()])
def oip_head_fields(data: bytes) -> None:
    """What the gateway reads of a request: the same as the protobuf runtime reads."""
    try:
        whole = ModelInferRequest.FromString(data)
    except DecodeError:
        oip_head(data)
        return
    assert oip_head(data) == (whole.model_name, whole.model_version, whole.id)


def _response() -> bytes:
    response = ModelInferResponse(model_name="m")
    response.parameters["sealward_model_digest"].string_param = "ab" * 32
    return response.SerializeToString()


@target(WireError, seeds=lambda: [_response()])
def oip_parameter(data: bytes) -> None:
    """The one parameter that a client reads of any library's response."""
    oip_string_parameter(data, "sealward_model_digest")


def _batches() -> Sequence[bytes]:
    entry = entry_bytes(event_id=bytes(16), binding=bytes(32), span=b"span")
    calls = [Call(id=n, method="Append", body=entry, timeout_ms=5) for n in range(3)]
    return [AppendRequest(calls=calls).SerializeToString(), AppendRequest().SerializeToString()]


@cache
def _front() -> BatchFront:
    reader = PeerReader("sealward.local", Revocations())
    return BatchFront("/a/B", AppendRequest, AppendResponse, reader, _LOG)


@target(seeds=_batches)
def batch_of_calls(data: bytes) -> None:
    """A message on a stream of batches: whatever it is, the stream ends or goes on."""
    front, stream = _front(), _Stream(_PEER)
    front._read(stream, iter([data]))
    assert stream.ended
    if stream.owed:
        taken = front.recv()
        assert len(taken) == min(stream.owed, 256)
        while len(taken) < stream.owed:
            taken += front.recv()
        front._open.clear()


class _Answers:
    """Channels whose stream answers with these bytes."""

    generation = 0

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = iter(answers)

    def get(self) -> _Answers:
        return self

    def stream_stream(self, *_: Any) -> Any:
        return lambda _requests: self

    def initial_metadata(self) -> None:
        pass

    def is_active(self) -> bool:
        return True

    def __iter__(self) -> _Answers:
        return self

    def __next__(self) -> bytes:
        return next(self._answers)


def _replies() -> Sequence[bytes]:
    replies = [Reply(id=1, body=b"b"), Reply(id=2, code=7, reason=5, message="m", field="f")]
    return [AppendResponse(replies=replies, checkpoint=b"c").SerializeToString()]


@target(seeds=_replies)
def batch_of_replies(data: bytes) -> None:
    """An answer on a stream of batches: every call gets exactly one end."""
    import threading

    ended: list[int] = []
    channels: Any = _Answers([data])
    upstream = BatchUpstream(
        channels, "/a/B", AppendRequest, AppendResponse,
        lambda replies, _shared: ended.extend(reply.id for reply in replies if reply.id in (1, 2)),
        ended.extend,
        log=_LOG, health=Health(), part="audit", unavailable=Reason.AUDIT_UNAVAILABLE,
        shared_field="checkpoint",
    )  # fmt: skip
    stream = OutStream(0)
    left = [2]
    stream.owed = {1: left, 2: left}
    stream.messages = 1
    upstream._read(stream, threading.Event())
    assert set(ended) == {1, 2}
    assert stream.broken
    for reply in _parsed(data).replies:
        if reply.code:
            reply_error(reply)


def _parsed(data: bytes) -> AppendResponse:
    try:
        return AppendResponse.FromString(data)
    except DecodeError:
        return AppendResponse()


class _Failed(grpc.RpcError, grpc.Call):
    """A failed call with these details."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def code(self) -> Any:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> Any:
        return ((DETAILS_KEY, self._data),)

    def initial_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Any) -> bool:
        return False


def _statuses() -> Sequence[bytes]:
    error = SealwardError(Reason.FIELD_INVALID, "text", field="f", retry_after=1.5)
    odd = Status(code=3, message="m")
    odd.details.add().Pack(Duration(seconds=1 << 60))
    odd.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=3)))
    odd.details.add().Pack(ErrorInfo(reason="NO_SUCH", domain="sealward"))
    return [details(error), details(error, "abc"), odd.SerializeToString()]


@target(seeds=_statuses)
def status_details(data: bytes) -> None:
    """The details of a failed call: read by each service and by clients, none may stumble."""
    failed = _Failed(data)
    assert isinstance(_classify(failed), ExportError)
    reason_of(failed)
    _from_details(data)
    _details(((DETAILS_KEY, data),))


class _OneAnswer:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def get(self) -> _OneAnswer:
        return self

    def unary_unary(self, _method: str) -> Any:
        return lambda _request, timeout: self._data


@target(ExportError, seeds=lambda: [b"", ExportTraceServiceResponse(
    partial_success={"rejected_spans": 2}).SerializeToString()])  # fmt: skip
def export_answer(data: bytes) -> None:
    """What audit answers to exported spans."""
    channels: Any = _OneAnswer(data)
    otlp_sender(channels)([b"span"])


@target(seeds=lambda: [b"00-" + b"0a" * 16 + b"-" + b"0b" * 8 + b"-01", b"01-" + b"a" * 32 + b"-x"])
def traceparent(data: bytes) -> None:
    """A caller's traceparent: taken or not, never an error."""
    found = parse_traceparent(data.decode("latin-1"))
    if found is not None:
        assert (len(found.trace_id), len(found.span_id)) == (16, 8)
        assert found.trace_id.hex() in data.decode("latin-1")


@target(SealwardError, seeds=lambda: [_PEER.identity.uri.encode()])
def identity_uri(data: bytes) -> None:
    """The URI of a certificate."""
    text = data.decode("utf-8", "replace")
    assert parse_identity(text).uri == text


@target(SealwardError, seeds=lambda: [material().chain_pem])
def peer_certificate(data: bytes) -> None:
    """A caller's certificate."""
    peer_from_certificate(data, "ipv4:1")


@target(StartupError, seeds=lambda: [material().chain_pem])
def issued_certificate(data: bytes) -> None:
    """What the enrolment folder holds, as certificate and as trust bundle."""
    load_material(material().key_pem, data, data)


@target(LineError, seeds=lambda: [
    write_line(Begins("ann", 1, 1_790_000_000_000_000_000)), write_line(Sent("s", 7, 10**18)),
    write_line(Ended("s", 7, 10**18, "ok", bytes(16), "log", 12)),
    write_line(Ended("s", 8, 10**18, "no-answer", code="UNAVAILABLE", reason="DRAINING")),
    write_line(Skipped("~s", 8, 256, 10**18)),
])  # fmt: skip
def call_list_line(data: bytes) -> None:
    """A line of a caller's own list."""
    # Written to the millisecond, whatever was read.
    line = read_line(write_line(read_line(data)))
    assert read_line(write_line(line)) == line


@cache
def _statement() -> bytes:
    one = material()
    return sign(json.dumps({"a": 1}).encode(), one.key_pem, one.chain_pem)


@target(SealwardError, seeds=lambda: [_statement(), join([_statement(), _statement()])], rounds=150)
def signed_statement(data: bytes) -> None:
    """A signed statement: what is taken says what was signed."""
    assert verify(data).payload == b'{"a": 1}'


@target(seeds=_spans)
def spooled_record(data: bytes) -> None:
    """The time in a record of the spool."""
    assert 0 <= _made_at(data) < 1 << 64
