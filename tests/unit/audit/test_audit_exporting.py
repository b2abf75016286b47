"""Exports from real logs over real gRPC: what matches, in order, with proofs, and nothing held."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.api.audit.v1 import export_pb2
from sealward.api.audit.v1.audit_pb2 import QueryEventsRequest
from sealward.api.audit.v1.export_pb2_grpc import (
    ExportServiceStub,
    add_ExportServiceServicer_to_server,
)
from sealward.evidence.event import make_event, open_head
from sealward.kit import attributes as names
from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer, parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from services.audit.backend import FileBackend, Places
from services.audit.exporting import ExportServicer, described, without_reference
from services.audit.rollover import Rollover
from services.audit.shard import Parts
from services.audit.shards import Shards
from tests.support.audit_shards import opened
from tests.support.audit_suite import GATEWAY, Ring, entry_bytes, span_bytes
from tests.support.inference_suite import until

PATIENT = "Patient/canary-7781"
EVENTS = 40
# A span that makes an entry as large as one may be.
LARGE = {names.TARGET: "t" * 250, names.ACTOR_CERT: "c" * 250, names.POLICY_DIGEST: "d" * 250}


@pytest.fixture
def shards(tmp_path: Path, ring: Ring, logger: Any) -> Iterator[Shards]:
    parts = Parts(FileBackend(), ring, "sealward.local", logger)
    rollover = Rollover(parts, Places(tmp_path / "audit"))
    opened = rollover.open(["default"])
    rollover.start()
    yield opened
    rollover.stop(10)


class Served(ExportServicer):
    """With the call that the chain would have made; it keeps what was left for the record."""

    left: dict[str, Any]

    def ExportEvents(self, request: Any, context: Any) -> Any:
        peer = Peer(parse_identity("spiffe://sealward.local/admin/local"), b"", b"", "")
        context.sealward_call = ControlCall("m", peer, {}, request, 0, float("inf"))
        self.left = context.sealward_call.attributes
        try:
            yield from super().ExportEvents(request, context)
        except SealwardError as error:
            context.abort(grpc.StatusCode.ABORTED, error.reason.name)


class Serving:
    def __init__(self, shards: Shards, *bounds: float) -> None:
        self.servicer = Served(shards, *bounds)
        self._server = grpc.server(ThreadPoolExecutor(6))
        add_ExportServiceServicer_to_server(self.servicer, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        # A small window, so that a few MiB are more than it takes.
        window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", window)

    def start(self, **fields: Any) -> Any:
        request = export_pb2.ExportEventsRequest(**{"form": "fhir", **fields})
        return ExportServiceStub(self.channel).ExportEvents(request, timeout=60)

    def export(self, **fields: Any) -> tuple[Any, list[Any]]:
        first, *rest = list(self.start(**fields))
        return first, [event for answer in rest for event in answer.events]

    def reason(self, **fields: Any) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            self.export(**fields)
        return str(caught.value.details())

    def close(self) -> None:
        self.channel.close()
        self._server.stop(None).wait()


@pytest.fixture
def serving(shards: Shards) -> Iterator[Serving]:
    started = Serving(shards)
    yield started
    started.close()


def fill(shards: Shards, count: int = EVENTS, **changes: Any) -> list[bytes]:
    ids = [new_event_id() for _ in range(count)]
    maker = shards.current().maker
    shards.append(
        [
            maker.appended(
                entry_bytes(
                    event_id=event_id,
                    span=span_bytes(outcome="denied" if n % 4 == 0 else "ok", **changes),
                    patient=PATIENT if n % 2 else "",
                ),
                GATEWAY,
            )
            for n, event_id in enumerate(ids)
        ]
    )
    return ids


def test_all_events_come_oldest_first_and_each_one_holds(shards: Shards, serving: Serving) -> None:
    ids = fill(shards)
    first, events = serving.export()
    assert first.total == EVENTS
    assert [event.summary.event_id for event in events] == ids
    (log,) = first.logs
    head = open_head(log.checkpoint, log.vkeys)
    made = [make_event(e.summary.event_id, e.span, e.receipt, head) for e in events]
    assert [event.index for event in made] == sorted(event.index for event in made)
    assert serving.servicer.left[names.COUNT] == EVENTS


def test_what_matches_is_what_a_query_gives(shards: Shards, serving: Serving) -> None:
    ids = fill(shards)
    _, denied = serving.export(query=QueryEventsRequest(outcome="denied"))
    assert [e.summary.event_id for e in denied] == ids[::4]
    _, of_patient = serving.export(query=QueryEventsRequest(patient=PATIENT))
    assert [e.summary.event_id for e in of_patient] == ids[1::2]
    assert serving.servicer.left[names.PATIENT_REFERENCE] == PATIENT
    _, newest = serving.export(query=QueryEventsRequest(limit=3))
    assert [e.summary.event_id for e in newest] == ids[-3:]
    _, none = serving.export(query=QueryEventsRequest(user="nobody"))
    assert none == []
    _, named = serving.export(event_ids=[ids[9], ids[2], ids[9]])
    assert [e.summary.event_id for e in named] == [ids[2], ids[9]]


def test_the_patient_is_in_clear_only_when_that_was_asked_for(
    shards: Shards, serving: Serving
) -> None:
    fill(shards, 4)
    _, hidden = serving.export()
    assert not any(PATIENT.encode() in event.SerializeToString() for event in hidden)
    assert [bool(e.summary.patient) for e in hidden] == [False, True, False, True]
    _, shown = serving.export(identified=True)
    assert [PATIENT.encode() in event.span for event in shown] == [False, True, False, True]


def test_taking_the_reference_out_leaves_the_rest_as_it_is() -> None:
    span = Span.FromString(span_bytes())
    whole = span.SerializeToString()
    span.attributes.add(key=names.PATIENT_REFERENCE).value.string_value = PATIENT
    assert Span.FromString(without_reference(span.SerializeToString())) == Span.FromString(whole)
    assert without_reference(whole) is whole


@pytest.mark.parametrize(
    "fields",
    [
        {"form": "xml"},
        {"form": ""},
        {"event_ids": [b"short"]},
        {"event_ids": [bytes(16)] * 1001},
        {"event_ids": [bytes(16)], "query": QueryEventsRequest(user="x")},
        {"query": QueryEventsRequest(outcome="perhaps")},
        {"query": QueryEventsRequest(limit=1_000_001)},
        {"query": QueryEventsRequest(trace_id=b"x")},
        {"query": QueryEventsRequest(tenant="nobody")},
    ],
)
def test_what_cannot_be_asked_is_refused(serving: Serving, fields: dict[str, Any]) -> None:
    assert serving.reason(**fields) == Reason.FIELD_INVALID.name


def test_an_event_that_is_not_there_is_refused(shards: Shards, serving: Serving) -> None:
    fill(shards, 1)
    assert serving.reason(event_ids=[bytes(16)]) == Reason.NOT_FOUND.name


def test_the_record_says_in_codes_what_was_exported() -> None:
    query = QueryEventsRequest(
        user="dr-smith",
        type="inference.*",
        patient=PATIENT,
        session="s1",
        reason="free text, with a name in it",
        limit=7,
        since_unix_nano=5_000_000_000,
    )
    request = export_pb2.ExportEventsRequest(form="csv", identified=True, query=query)
    assert described(request) == (
        "csv identified type=inference.* reason user=dr-smith patient session since=5 limit=7"
    )
    ids = export_pb2.ExportEventsRequest(form="bundle", event_ids=[bytes(16)] * 2)
    assert described(ids) == "bundle pseudonymous events=2"


def test_who_never_reads_is_cut_off_and_holds_nothing(shards: Shards) -> None:
    fill(shards, 1500, extra=LARGE)
    serving = Serving(shards, 0.3)
    try:
        # Neither reads: flow control stops the sender after a part or two of several MiB.
        idle = [serving.start(), serving.start()]
        next(idle[0])
        next(idle[1])
        assert serving.reason() == Reason.OVERLOADED.name
        # Both are cut off before anybody reads on.
        until(lambda: serving.servicer._streams._slots._value == 2)
        first, events = serving.export(query=QueryEventsRequest(limit=5))
        assert (first.total, len(events)) == (5, 5)
        for call in idle:
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() == grpc.StatusCode.CANCELLED
    finally:
        serving.close()


def test_an_export_has_an_end(shards: Shards) -> None:
    fill(shards, 2)
    serving = Serving(shards, 30.0, 0.0)
    try:
        assert serving.reason() == Reason.DEADLINE_EXCEEDED.name
    finally:
        serving.close()


def test_an_export_goes_through_the_logs_of_several_years(tmp_path: Path) -> None:
    with opened(tmp_path / "audit") as logs:
        old = fill(logs.shards, 4)
        logs.rollover.turn("default")
        new = fill(logs.shards, 3)
        serving = Serving(logs.shards)
        try:
            first, events = serving.export()
            assert [event.summary.event_id for event in events] == old + new
            assert len({log.origin for log in first.logs}) == 2
            heads = [open_head(log.checkpoint, log.vkeys) for log in first.logs]
            for event in events:
                make_event(event.summary.event_id, event.span, event.receipt, heads[event.log])
            # Each log has pseudonyms of its own: the reference finds the patient in both.
            _, of_patient = serving.export(query=QueryEventsRequest(patient=PATIENT))
            assert [e.summary.event_id for e in of_patient] == [*old[1::2], *new[1::2]]
            _, newest = serving.export(query=QueryEventsRequest(limit=5))
            assert [e.summary.event_id for e in newest] == [*old[2:], *new]
            _, named = serving.export(event_ids=[new[0], old[0]])
            assert [e.summary.event_id for e in named] == [old[0], new[0]]
            past = first.logs[0].origin
            _, of_log = serving.export(query=QueryEventsRequest(origin=past))
            assert [e.summary.event_id for e in of_log] == old
            assert serving.reason(query=QueryEventsRequest(origin="x")) == Reason.NOT_FOUND.name
        finally:
            serving.close()
