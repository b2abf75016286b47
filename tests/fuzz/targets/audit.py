"""What the audit service reads: spans, entries, questions, its own and an object store."""

from __future__ import annotations

import http.client
import io
import ssl
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from botocore.awsrequest import AWSResponse
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.api.audit.v1 import audit_pb2, export_pb2
from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.exporter import export_request
from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.cosignature import Cosigner
from sealward.tlog.note import MAX_NOTE_SIZE, parse_note, sign_note
from sealward.tlog.tiles import CHECKPOINT_PATH
from sealward.tlog.witness import format_size
from services.audit.cosigning.asking import Answer, Cosigned, WitnessAwayError, ask
from services.audit.cosigning.http_witness import HttpWitness, tls_context
from services.audit.digests import IndexKeys
from services.audit.entry import EntryMaker
from services.audit.entryfile import NOTHING, DamagedError, EntryFile
from services.audit.entryrecord import (
    END_BYTES,
    HEAD_BYTES,
    RecordError,
    begin_record,
    end_record,
    file_start,
    parse_record,
    record_leaves,
)
from services.audit.exporting import _check, described, without_reference
from services.audit.framing import framed, unframed
from services.audit.origin import KeyState, LogName
from services.audit.otlpwire import ExportRequest
from services.audit.producers import Producers
from services.audit.queries import check_query
from services.audit.rewrapped import read_rewrapped
from services.audit.rows import RowReader
from services.audit.s3_sink import S3Bucket, S3Sink
from services.audit.spanfields import SpanError
from services.audit.spanfilter import SpanFilter
from services.audit.store import StoreBrokenError
from services.audit.tilesink import SinkMovedError, SinkUnavailableError
from tests.fuzz.harness import target
from tests.support.audit_suite import GATEWAY, WORKLOAD, entry_bytes, span_bytes
from tests.support.cosigners import ed25519, ml_dsa
from tests.support.tlog_logs import ORIGIN, entries, log_files, signer, tree_of

_NOW = 1_790_000_000_000_000_000
_ID = bytes.fromhex("0190a1b2c3d47000800000000000000a")


def _spans() -> Sequence[bytes]:
    odd = Span.FromString(_fixed(span_bytes(extra={names.PRODUCER_SEQ: 7, "not.listed": "x"})))
    odd.events.add(name="event")
    odd.status.message = "text"
    listed = odd.attributes.add(key=names.ACTOR_ROLES)
    listed.value.array_value.values.add().string_value = "clinician"
    odd.attributes.add(key=names.BREAK_GLASS).value.bool_value = True
    return [_fixed(span_bytes()), odd.SerializeToString()]


def _fixed(span: bytes) -> bytes:
    """Give a span ids that are the same in every run."""
    parsed = Span.FromString(span)
    parsed.trace_id, parsed.span_id = b"t" * 16, b"s" * 8
    return parsed.SerializeToString()


@target(DecodeError, seeds=lambda: [export_request(_spans()), export_request([]), b""])
def otlp_request(data: bytes) -> None:
    """An export request: the spans that protobuf finds, or refused as protobuf does."""
    found = ExportRequest.FromString(data).spans
    whole = ExportTraceServiceRequest.FromString(data)
    spans = [s for r in whole.resource_spans for c in r.scope_spans for s in c.spans]
    assert len(found) == len(spans)


@cache
def _filters() -> tuple[SpanFilter, SpanFilter]:
    return SpanFilter(names.ALLOWED, (names.PRODUCER_ID,)), SpanFilter(frozenset())


@target(SpanError, seeds=_spans, rounds=600)
def span(data: bytes) -> None:
    """A span: what passes is a span of allowed parts, and passes again unchanged."""
    for filter_ in _filters():
        once = filter_.filter(data)
        again = filter_.filter(once.body)
        parsed = Span.FromString(once.body)
        # The same span, whatever the order of its fields.
        assert Span.FromString(again.body) == parsed
        assert again.dropped == 0
        assert {pair.key for pair in parsed.attributes} == set(once.values)
        assert not parsed.events
        assert not parsed.status.message


@cache
def _maker() -> EntryMaker:
    return EntryMaker(IndexKeys(lambda: bytes(32)))


def _entries() -> Sequence[bytes]:
    fixed = {"event_id": _ID, "binding": bytes(32), "span": _fixed(span_bytes())}
    return [
        entry_bytes(**fixed),
        entry_bytes(**fixed, patient="MRN-1", input_digest=bytes(32), output_digest=bytes(32)),
    ]


@target(SealwardError, seeds=_entries, rounds=600)
def entry(data: bytes) -> None:
    """An entry of one of our services: a leaf below its bound, and a row that reads back."""
    made = _maker().appended(data, GATEWAY)
    assert len(made.prefix) + len(made.span) < 2048
    read = RowReader().read(made.key.event_id, made.span)
    assert read == made.row


@target(SpanError, seeds=_spans, rounds=600)
def exported_span(data: bytes) -> None:
    """A span of an outside workload: nobody but itself is named in it."""
    made = _maker().exported(data, WORKLOAD)
    assert made.row is not None
    assert (made.row.type, made.row.actor, made.row.model) == ("otel.span", "pacs", "")
    assert RowReader().read(made.key.event_id, made.span) == made.row


@target(SpanError, seeds=_spans)
def opened_span(data: bytes) -> None:
    """A span that was sealed: its row."""
    RowReader().read(_ID, data)


def _with_reference() -> bytes:
    parsed = Span.FromString(_spans()[0])
    parsed.attributes.add(key=names.PATIENT_REFERENCE).value.string_value = "Patient/1"
    return parsed.SerializeToString()


@target(DecodeError, seeds=lambda: [_with_reference(), *_spans()])
def span_without_patient(data: bytes) -> None:
    """An opened span as it leaves in an export: the reference is not in it."""
    left = Span.FromString(without_reference(data))
    assert names.PATIENT_REFERENCE not in {pair.key for pair in left.attributes}


def _queries() -> Sequence[bytes]:
    query = audit_pb2.QueryEventsRequest(
        user="ann", patient="MRN-1", model="m", outcome="ok", type="inference.*", limit=5,
        since_unix_nano=_NOW, trace_id=bytes(16),
    )  # fmt: skip
    return [query.SerializeToString(), b""]


@target(SealwardError, DecodeError, seeds=_queries)
def query(data: bytes) -> None:
    """A question to the log."""
    check_query(audit_pb2.QueryEventsRequest.FromString(data))


def _exports() -> Sequence[bytes]:
    asked = audit_pb2.QueryEventsRequest(user="ann", reason="free text", session="s")
    return [
        export_pb2.ExportEventsRequest(form="csv", query=asked).SerializeToString(),
        export_pb2.ExportEventsRequest(form="bundle", event_ids=[_ID]).SerializeToString(),
    ]


@target(SealwardError, DecodeError, seeds=_exports)
def export_question(data: bytes) -> None:
    """What is to be exported, and what the record of it says: codes, in bounds."""
    request = export_pb2.ExportEventsRequest.FromString(data)
    _check(request)
    assert len(described(request)) <= 256


@target(StoreBrokenError, seeds=lambda: [framed([b"", b"ab", b"x" * 300]), framed(entries(3))])
def stored_batch(data: bytes) -> None:
    """A batch as the store keeps it."""
    assert data.startswith(framed(unframed(data, 3)))


@target(StartupError, seeds=lambda: [KeyState(1, (signer().vkey,)).encode(),
                                     KeyState(2, ("a", "b"), 1, _NOW).encode()])  # fmt: skip
def stored_keys(data: bytes) -> None:
    """The list of a log's keys as the store keeps it."""
    state = KeyState.decode(data)
    assert KeyState.decode(state.encode()) == state


@target(StartupError, seeds=lambda: [b"sealward.local/0123abcd/default/2026-2"])
def stored_name(data: bytes) -> None:
    """A log's name as the store keeps it."""
    text = data.decode("utf-8", "replace")
    name = LogName.parse(text)
    assert name.origin == text
    assert name.year >= 0


@target(ValueError, seeds=lambda: [
    b'{"positions":{"log":5},"known":[["gateway","aa",9,1.5,[[3,4,1.0,true]]]]}',
    b'{"positions":{},"known":[]}',
])  # fmt: skip
def stored_producers(data: bytes) -> None:
    """The numbers of the producers as the store keeps them."""
    producers = Producers(lambda: 1e9, 60)
    producers.load(data)
    producers.due()
    producers.dump()


# --- an S3-compatible store's answers, below botocore's parsers ----------------------------------

_ERROR = b"<Error><Code>NoSuchKey</Code><Message>m</Message></Error>"
_LIST = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Name>b</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated><Contents><Key>log/"
    b"checkpoint</Key><ETag>&quot;e&quot;</ETag><Size>1</Size></Contents></ListBucketResult>"
)


class _Body(io.BytesIO):
    def stream(self, **_: Any) -> Any:
        yield self.read()


@cache
def _bucket() -> S3Bucket:
    bucket = S3Bucket("http://127.0.0.1:9", "b", "access", "secret")
    bucket.client.meta.events.register("before-send.s3.*", lambda **_: _ANSWER[0]())
    return bucket


_ANSWER: list[Callable[[], AWSResponse]] = []


def _answer(data: bytes) -> AWSResponse:
    """Take status, entity tag and length of the headers from the first bytes, the rest as body."""
    status = (200, 200, 200, 404, 412, 409, 500, 301, 403)[data[0] % 9]
    headers = {} if data[1] % 4 == 3 else {"ETag": f'"{data[1]:x}"'}
    if data[2] % 4 == 3:
        headers["Content-Length"] = str(data[2])
    return AWSResponse("http://127.0.0.1:9/b/k", status, headers, _Body(data[3:]))


@target(SinkUnavailableError, SinkMovedError, seeds=lambda: [
    b"\x00\x00\x00" + _LIST, b"\x03\x00\x00" + _ERROR, b"\x00\x00\x00", b"\x04\x00\x00" + _ERROR,
    b"\x00\x00\x00" + log_files(entries(3))["checkpoint"],
], rounds=40)  # fmt: skip
def object_store_answer(data: bytes) -> None:
    """Whatever the object store answers, to each kind of request."""
    _ANSWER[:] = [lambda: _answer(data.ljust(3, b"\0"))]
    sink = S3Sink(_bucket(), "log")
    calls: list[Callable[[], object]] = [
        sink.begin,
        lambda: sink.read(CHECKPOINT_PATH),
        lambda: sink.holds("tile/0/000", b"x"),
        lambda: sink.write("tile/0/000", b"x"),
        sink.flush,
        lambda: sink.write(CHECKPOINT_PATH, b"x"),
    ]
    refused: list[Exception] = []
    for call in calls:
        try:
            call()
        except (SinkUnavailableError, SinkMovedError) as error:
            refused.append(error)
    if len(refused) == len(calls):
        raise refused[0]


# --- witnesses -----------------------------------------------------------------------------------

_ONE, _TWO = ed25519("w.example"), ml_dsa("w.example")
_TREE = tree_of(entries(9))


class _Grown:
    """A log of nine entries."""

    head = (9, sign_checkpoint(Checkpoint(ORIGIN, 9, _TREE.root()), [signer()]))

    def consistency(self, old: int, new: int) -> bytes:
        return b"".join(_TREE.consistency(old, new))


def _lines(*cosigners: Cosigner) -> bytes:
    text = parse_note(_Grown.head[1]).text
    return sign_note(text, [*cosigners])[len(text) + 1 :]


@target(seeds=lambda: [
    b"\x00" + _lines(_ONE), b"\x00" + _lines(_ONE, _TWO), b"\x01" + format_size(7), b"\x02",
    b"\x03", b"\x01" + format_size(12), b"\x04<html>",
])  # fmt: skip
def witness_answer(data: bytes) -> None:
    """What a witness answers: taken as cosigned are lines that hold, of its own keys."""
    status = (200, 409, 422, 404, 500)[data[0] % 5] if data else 200
    witness: Any = SimpleNamespace(
        verifiers=[_ONE.verifier, _TWO.verifier],
        add_checkpoint=lambda _body: Answer(status, data[1:]),
    )
    result, _ = ask(witness, _Grown(), *_Grown.head, 5)
    if isinstance(result, Cosigned):
        text = parse_note(_Grown.head[1]).text
        for line in result.lines:
            known = {v.key_id: v for v in witness.verifiers}[line.key_id]
            assert known.verify(text, line.signature)


class _Line:
    """A connection whose other end has said all that it will say."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def makefile(self, *_: object, **__: object) -> io.BytesIO:
        return io.BytesIO(self._said)

    def sendall(self, data: bytes) -> None:
        """Send into nothing."""

    def shutdown(self, how: int) -> None:
        """End nothing."""

    def close(self) -> None:
        """End nothing."""


@cache
def _tls() -> ssl.SSLContext:
    return tls_context(None)


class _Spoken(HttpWitness):
    def __init__(self, said: bytes) -> None:
        super().__init__("w", "http://127.0.0.1:9", (), seconds=60, context=_tls())
        self._said = said

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", 9)
        connection.sock = _Line(self._said)  # type: ignore[assignment]
        return connection


@target(WitnessAwayError, seeds=lambda: [
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 409 Conflict\r\nContent-Type: text/x.tlog.size\r\nConnection: close\r\n\r\n7\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 Not Found\r\n\r\n",
])  # fmt: skip
def witness_over_http(data: bytes) -> None:
    """What comes over the connection to a witness elsewhere."""
    answer = _Spoken(data).add_checkpoint(b"old 0\n")
    assert len(answer.body) <= MAX_NOTE_SIZE


_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@target(StoreBrokenError, seeds=lambda: [b'{"wrapped":{"segment/1":"QUJD"}}', b'{"wrapped":{}}'])
def rewrapped_keys(data: bytes) -> None:
    """The keys beside an archive."""
    with TemporaryDirectory(dir=_MEMORY) as folder:
        path = Path(folder, "rewrapped.json")
        path.write_bytes(data)
        assert all(isinstance(key, bytes) for key in read_rewrapped(path).values())


def _records() -> Sequence[bytes]:
    records, before, first = [], 0, 0
    for count in (1, 3, 2):
        leaves = [b"%d of %d" % (n, count) for n in range(count)]
        hashes, ids = [bytes([count]) * 32] * count, b"".join(b"%016d" % n for n in range(count))
        begun = begin_record(_ID, first, leaves, 1, before)
        rest, before = end_record(begun, leaves, hashes, ids, ids[::-1], b"r" * 32)
        records.append(begun + rest)
        first += count
    return records


def _with_checks(data: bytes) -> bytes:
    """Make head and end of a record right, so that what is between them is looked at."""
    if len(data) < HEAD_BYTES + END_BYTES:
        return data
    fields = data[: HEAD_BYTES - 5]
    head = fields + zlib.crc32(fields, zlib.crc32(_ID)).to_bytes(4) + b"\xa5"
    rest = data[HEAD_BYTES:-5]
    return head + rest + zlib.crc32(head + rest).to_bytes(4) + b"\xa5"


@target(RecordError, seeds=_records, rounds=600)
def record_of_entries(data: bytes) -> None:
    """A batch in the embedded store's file."""
    data = _with_checks(data)
    record = parse_record(_ID, data)
    leaves = record_leaves(record)
    begun = begin_record(_ID, record.head.first, leaves, record.head.puts, record.head.before)
    hashes = [record.hashes[n : n + 32] for n in range(0, len(record.hashes), 32)]
    rest, check = end_record(begun, leaves, hashes, record.ids, record.prints, record.root)
    # One spelling, but for the lengths in the table, which the frames say as well.
    table = slice(record.head.table, record.head.hashes)
    assert (begun + rest)[: table.start] == data[: table.start]
    assert (begun + rest)[table.stop : -5] == data[table.stop : -5]
    assert (begun + rest == data) == (check == record.check)


@target(
    DamagedError, StoreBrokenError,
    seeds=lambda: [file_start(_ID), *(file_start(_ID) + b"".join(_records()[:n]) for n in (1, 3))],
)  # fmt: skip
def file_of_entries(data: bytes) -> None:
    """The embedded store's file after a crash: what is taken is there at the next start too."""
    with TemporaryDirectory(dir=_MEMORY) as folder:
        path = Path(folder, "log.entries")
        path.write_bytes(data)
        file = EntryFile(path)
        try:
            dropped = file.resume(NOTHING, ())
            size, leaves = file.mark.size, file.leaves(0, file.mark.size)
        finally:
            file.close()
        assert path.read_bytes() == data[: len(data) - dropped]
        again = EntryFile(path)
        try:
            assert again.resume(NOTHING, ()) == 0
            assert (again.mark.size, again.leaves(0, size)) == (size, leaves)
        finally:
            again.close()
