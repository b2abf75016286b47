"""What a reconciler reads: every event of a time, of all logs, and nobody's data."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from sealward.api.audit.v1 import reconcile_pb2
from sealward.api.audit.v1.reconcile_pb2_grpc import (
    ReconcileServiceStub,
    add_ReconcileServiceServicer_to_server,
)
from sealward.kit import attributes as names
from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer, parse_identity
from sealward.kit.reasons import Reason
from services.audit import reconciling
from services.audit.reconciling import SLACK, ReconcileServicer, described
from tests.support.audit_shards import IN_2026, Logs, opened
from tests.support.audit_suite import entry_bytes, span_bytes
from tests.support.inference_suite import until

PATIENT = "Patient/canary-9907"
HOUR = 3600 * 1_000_000_000


class Served(ReconcileServicer):
    """With the call that the chain would have made; it keeps what was left for the record."""

    left: dict[str, Any]

    def ReadTrail(self, request: Any, context: Any) -> Any:
        peer = Peer(parse_identity("spiffe://sealward.local/admin/local"), b"", b"", "")
        context.sealward_call = ControlCall("m", peer, {}, request, 0, float("inf"))
        self.left = context.sealward_call.attributes
        try:
            yield from super().ReadTrail(request, context)
        except SealwardError as error:
            context.abort(grpc.StatusCode.ABORTED, error.reason.name)


class Serving:
    def __init__(self, logs: Logs, *bounds: float) -> None:
        self.servicer = Served(logs.shards, *bounds)
        self._server = grpc.server(ThreadPoolExecutor(6))
        add_ReconcileServiceServicer_to_server(self.servicer, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", window)

    def start(self, **fields: Any) -> Any:
        request = reconcile_pb2.ReadTrailRequest(**fields)
        return ReconcileServiceStub(self.channel).ReadTrail(request, timeout=60)

    def read(self, **fields: Any) -> tuple[Any, list[Any], Any]:
        first, *parts, last = list(self.start(**fields))
        assert not first.rows
        assert not last.rows
        return first, [row for part in parts for row in part.rows], last

    def close(self) -> None:
        self.channel.close()
        self._server.stop(None).wait()


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    with opened(tmp_path / "audit") as made:
        yield made


@pytest.fixture
def serving(logs: Logs) -> Iterator[Serving]:
    started = Serving(logs)
    yield started
    started.close()


def event(number: int, tenant: str = "", start: int = IN_2026, **extra: Any) -> bytes:
    values = {
        names.PRODUCER_SEQ: number, names.PRODUCER_INSTANCE: "feed5eed",
        names.SESSION_ID: "5e55", names.CALLER_SEQ: number + 100, **extra,
    }  # fmt: skip
    return entry_bytes(span=span_bytes(extra=values, start=start), patient=PATIENT, tenant=tenant)


def test_every_event_of_every_tenant_and_log_comes_once(logs: Logs, serving: Serving) -> None:
    logs.append(event(1), event(2, "north"), event(3))
    logs.rollover.turn("default")
    logs.append(event(4), event(5, "north"))
    for complete in (False, True):
        first, rows, last = serving.read(complete=complete)
        origins = [log.origin for log in first.logs]
        assert [log.tenant for log in first.logs] == ["default", "default", "north"]
        assert len(set(origins)) == 3
        found = [(row.log, row.producer_seq) for row in rows if row.producer == "gateway"]
        assert found == [(0, 1), (0, 3), (1, 4), (2, 2), (2, 5)]
        assert [row.log_index for row in rows if row.log == 2] == [0, 1]
        assert last.done == sum(log.size for log in first.logs)
        assert [scan.differences for scan in last.scans] == ([0, 0, 0] if complete else [])
    assert serving.servicer.left == {names.TARGET: "complete", names.COUNT: last.done}
    row = rows[0]
    assert (row.type, row.outcome, row.instance) == ("inference.predict", "ok", "feed5eed")
    assert (row.session, row.caller_seq) == ("5e55", 101)
    assert [len(x) for x in (row.event_id, row.trace_id, row.span_id, row.parent_span_id)] == [
        16, 16, 8, 0
    ]  # fmt: skip
    for row in rows:
        text = row.SerializeToString()
        for secret in (PATIENT, "dr-smith", "breast-cancer", "TREAT"):
            assert secret.encode() not in text


def test_a_time_is_read_with_an_hour_on_both_sides(logs: Logs, serving: Serving) -> None:
    starts = [IN_2026 + n * HOUR for n in range(8)]
    logs.append(*(event(n, start=start) for n, start in enumerate(starts, 1)))
    since, until_ = starts[3], starts[5]
    for complete in (False, True):
        _, rows, last = serving.read(
            since_unix_nano=since, until_unix_nano=until_, complete=complete
        )
        assert [row.producer_seq for row in rows] == [3, 4, 5, 6]
        assert [(run.producer, run.instance) for run in last.earlier] == [("gateway", "feed5eed")]
        assert last.done == len(starts)
    # Its beginning was read, and there was nothing before it.
    _, _, last = serving.read(since_unix_nano=starts[0] + SLACK, until_unix_nano=starts[1])
    assert list(last.earlier) == []
    logs.append(event(7, start=starts[7], **{names.PRODUCER_INSTANCE: "0b"}))
    _, _, last = serving.read(since_unix_nano=starts[6])
    assert [run.instance for run in last.earlier] == ["feed5eed"]


def test_the_target_is_read_of_gaps_alone(logs: Logs, serving: Serving) -> None:
    logs.append(
        event(1, **{names.EVENT_TYPE: "audit.gap", names.TARGET: "gateway/aa/3-4"}),
        event(2, **{names.EVENT_TYPE: "user.create", names.TARGET: "ann"}),
    )
    _, rows, _ = serving.read()
    assert [row.target for row in rows] == ["gateway/aa/3-4", ""]


def test_events_of_the_user_are_marked(logs: Logs, serving: Serving) -> None:
    logs.append(event(1), event(2, **{names.ACTOR_ID: "ann"}))
    assert [row.asked for row in serving.read()[1]] == [True, True]
    assert [row.asked for row in serving.read(user="ann")[1]] == [False, True]


def test_more_than_one_page_and_part(
    logs: Logs, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "_PAGE", 7)
    monkeypatch.setattr(reconciling, "_PART_ROWS", 3)
    logs.append(*(event(n) for n in range(1, 30)))
    for complete in (False, True):
        _, rows, _ = serving.read(complete=complete)
        assert [row.producer_seq for row in rows] == list(range(1, 30))


def test_a_complete_reading_does_not_believe_the_index(logs: Logs, serving: Serving) -> None:
    logs.append(event(1), event(2), event(3))
    shard = logs.shards.current()
    shard.indexer.wait(3)
    shard.index._writer.execute("DELETE FROM events WHERE idx = 1")
    assert [row.producer_seq for row in serving.read()[1]] == [1, 3]
    _, rows, last = serving.read(complete=True)
    assert [row.producer_seq for row in rows] == [1, 2, 3]
    assert [scan.differences for scan in last.scans] == [1]


def test_a_purged_log_is_named_and_not_read(logs: Logs, serving: Serving) -> None:
    logs.append(event(1))
    logs.rollover.turn("default")
    logs.append(event(2))
    logs.shards.all()[1].state = "purged"  # type: ignore[misc]
    first, rows, _ = serving.read()
    assert [log.purged for log in first.logs] == [True, False, False]
    assert [row.producer_seq for row in rows] == [2]


def test_one_reading_at_a_time_and_none_for_ever(logs: Logs) -> None:
    logs.append(*(event(n, **{names.PRODUCER_INSTANCE: "i" * 250}) for n in range(1, 1500)))
    serving = Serving(logs, 0.3)
    try:
        # It does not read: flow control stops the sender after a part or two.
        idle = serving.start()
        next(idle)
        with pytest.raises(grpc.RpcError, match=Reason.OVERLOADED.name):
            serving.read()
        until(lambda: serving.servicer._streams._slots._value == 1)
        assert len(serving.read()[1]) == 1499
        with pytest.raises(grpc.RpcError) as caught:
            list(idle)
        assert caught.value.code() == grpc.StatusCode.CANCELLED
    finally:
        serving.close()
    short = Serving(logs, 30.0, 0.0)
    try:
        with pytest.raises(grpc.RpcError, match=Reason.DEADLINE_EXCEEDED.name):
            short.read()
    finally:
        short.close()


def test_a_time_beyond_all_times_is_refused(serving: Serving) -> None:
    with pytest.raises(grpc.RpcError, match=Reason.FIELD_INVALID.name):
        serving.read(since_unix_nano=1 << 63)


def test_the_record_says_in_codes_what_was_read() -> None:
    request = reconcile_pb2.ReadTrailRequest(
        since_unix_nano=5_000_000_000, until_unix_nano=9_000_000_000, user="ann", against=True
    )
    assert described(request) == "against user=ann since=5 until=9"
    assert described(reconcile_pb2.ReadTrailRequest(user="Ann Miller, MRN 4711")) == "user"
