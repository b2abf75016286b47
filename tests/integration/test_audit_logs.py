"""A real audit service whose logs end, change their keys and are kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest

from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1 import logs_pb2 as pb
from sealward.api.audit.v1.logs_pb2_grpc import LogAdminServiceStub
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.logdir import verify_directory
from sealward.tlog.merkle import split_hashes
from sealward.tlog.note import parse_vkeys
from tests.integration.test_audit_service import (
    CANARY,
    AppendStream,
    Pair,
    outcome,
    reason_of,
    verify_receipt,
)
from tests.support.audit_suite import entry_bytes
from tests.support.inference_suite import Service


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("logs"))
    made.audit = Service(
        "audit",
        made.folder,
        KEYS_ADDRESS=made.keys.address,
        AUDIT_ADDRESS="",
        START_SECONDS=20,
        TENANTS="north",
    )
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture
def admin(pair: Pair) -> LogAdminServiceStub:
    return LogAdminServiceStub(pair.to_audit("admin").get())


def logs(admin: LogAdminServiceStub, tenant: str = "default") -> list[pb.LogInfo]:
    request = pb.ListLogsRequest(tenant=tenant)
    return list(admin.ListLogs(request, timeout=20, wait_for_ready=True).logs)


def refused(call: object, request: object) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=20)  # type: ignore[operator]
    return reason_of(caught.value)


def test_a_batch_of_several_tenants_is_answered_by_each_log(pair: Pair) -> None:
    stream = AppendStream(pair.to_audit().get())
    checkpoints = {}
    for tenant in ("", "north"):
        (reply,), note = stream.ask([entry_bytes(tenant=tenant)])
        checkpoint = pair.checkpoint(note)
        verify_receipt(reply, checkpoint)
        checkpoints[tenant] = checkpoint.origin.split("/")[2]
    assert checkpoints == {"": "default", "north": "north"}
    (reply,), _ = stream.ask([entry_bytes(tenant="south")])
    assert (reply.reason, reply.field) == (Reason.FIELD_INVALID, "tenant")
    stream.close()
    assert len(pair.events(tenant="north")) == 1
    assert [e.origin.split("/")[2] for e in pair.events(type="inference.*")] == ["default"]


def test_a_log_ends_while_entries_come(pair: Pair, admin: LogAdminServiceStub) -> None:
    (before,) = logs(admin)
    stop = threading.Event()
    promised: dict[bytes, str] = {}
    failed: list[object] = []

    def write() -> None:
        stream = AppendStream(pair.to_audit().get())
        while not stop.is_set():
            ids = [new_event_id() for _ in range(5)]
            replies, note = stream.ask([entry_bytes(event_id=i, patient=CANARY) for i in ids])
            head = open_checkpoint(note, parse_vkeys((pair.audit.data / "log.vkey").read_text()))
            for event_id, reply in zip(ids, replies, strict=True):
                if reply.code:
                    failed.append(reply)
                else:
                    verify_receipt(reply, head)
                    promised[event_id] = head.origin
        stream.close()

    # The keys of both logs are in the file before the turn, as a client has them.
    announced = admin.Freeze(pb.FreezeRequest(announce=True), timeout=20)
    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    frozen = admin.Freeze(pb.FreezeRequest(), timeout=60)
    stop.set()
    for writer in writers:
        writer.join()
    assert not failed
    assert (announced.successor, announced.successor_vkey) == (
        frozen.successor,
        frozen.successor_vkey,
    )
    current, ended = logs(admin)
    assert (current.origin, ended.origin) == (frozen.successor, before.origin)
    assert (ended.state, ended.folder) == (pb.LOG_STATE_FROZEN, f"logs/default/{before.year}")
    found = {e.event_id: e.origin for e in pair.events(patient=CANARY, limit=10_000)}
    assert promised
    assert {event_id: found[event_id] for event_id in promised} == promised
    # Consistency, receipts and events of the ended log are still to be had.
    old = ended.size
    answer = pair.stub("gateway").GetConsistency(
        audit_pb2.GetConsistencyRequest(sizes=[2, old], origin=ended.origin), timeout=20
    )
    final = open_checkpoint(ended.checkpoint, parse_vkeys("\n".join(ended.vkeys)))
    assert final.size == old
    root = verify_directory(
        pair.audit.data / ended.folder / "log", parse_vkeys("\n".join(ended.vkeys)), known=[final]
    )
    assert root.size == old
    assert len(split_hashes(answer.proofs[0])) > 0
    first = pair.events(origin=ended.origin, type="audit.start")[0].event_id
    receipt = pair.stub().GetReceipt(audit_pb2.GetReceiptRequest(event_id=first), timeout=20)
    assert receipt.checkpoint == ended.checkpoint
    assert pair.opened(first)["sealward.event.type"] == "audit.start"
    assert [e.type for e in pair.events(type="audit.freeze")] == ["audit.freeze"] * 2


def test_the_logs_are_there_after_a_restart(pair: Pair, admin: LogAdminServiceStub) -> None:
    before = logs(admin)
    pair.audit.end()
    pair.audit.start()
    after = logs(admin)
    assert [(log.origin, log.state) for log in after] == [(log.origin, log.state) for log in before]
    assert [log.checkpoint for log in after[1:]] == [log.checkpoint for log in before[1:]]


def test_the_key_of_a_log_changes(pair: Pair, admin: LogAdminServiceStub) -> None:
    file = pair.audit.data / "log.vkey"
    old = file.read_text().splitlines()[0]
    answer = admin.RotateLogKey(pb.RotateLogKeyRequest(), timeout=20)
    assert answer.old_vkey == old
    assert file.read_text().splitlines()[:2] == [answer.new_vkey, old]
    stream = AppendStream(pair.to_audit().get())
    _, note = stream.ask([entry_bytes()])
    for line in (old, answer.new_vkey):
        open_checkpoint(note, parse_vkeys(line))
    stream.close()
    assert refused(admin.RotateLogKey, pb.RotateLogKeyRequest()) == "LOG_STATE"
    assert {e.outcome for e in pair.events(type="log.key")} == {"ok", "failed"}


def test_archive_hold_and_no_purge(pair: Pair, admin: LogAdminServiceStub) -> None:
    current, ended = logs(admin)
    assert refused(admin.Archive, pb.ArchiveRequest(origin=current.origin)) == "LOG_STATE"
    done = admin.Archive(pb.ArchiveRequest(origin=ended.origin), timeout=60)
    assert {"log.db", "log.entries", "log/checkpoint"} <= {file.path for file in done.files}
    # It would hold nothing.
    assert refused(admin.PlaceHold, pb.PlaceHoldRequest(patient=f"{CANARY} ")) == "FIELD_INVALID"
    hold = admin.PlaceHold(pb.PlaceHoldRequest(patient=CANARY), timeout=20).hold_id
    (held,) = admin.ListHolds(pb.ListHoldsRequest(), timeout=20).holds
    assert held.id == hold
    assert len(held.patient) == 32
    assert logs(admin)[1].holds == [hold]
    request = pb.PurgeRequest(origin=ended.origin, confirm="yes")
    assert refused(admin.Purge, request) == "FIELD_INVALID"
    request.confirm = ended.origin
    assert refused(admin.Purge, request) == "LOG_RETAINED"
    admin.ReleaseHold(pb.ReleaseHoldRequest(hold_id=hold), timeout=20)
    assert not admin.ListHolds(pb.ListHoldsRequest(), timeout=20).holds
    assert refused(admin.ReleaseHold, pb.ReleaseHoldRequest(hold_id=hold)) == "NOT_FOUND"
    kinds = ["audit.archive", "audit.hold", "audit.release", "audit.purge", "audit.logs"]
    for kind in kinds:
        assert pair.events(type=kind), kind
    # An archived log still answers.
    assert pair.events(origin=ended.origin, patient=CANARY)
    for path in pair.folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


def test_the_index_made_anew_is_the_same(pair: Pair, admin: LogAdminServiceStub) -> None:
    for log in logs(admin):
        steps = list(admin.Reindex(pb.ReindexRequest(origin=log.origin), timeout=60))
        assert steps[-1].digest == steps[-1].before != b""
        assert steps[-1].done == steps[-1].size >= log.size
    assert len(pair.events(type="audit.reindex")) == 2


def test_only_the_administrator_may(pair: Pair) -> None:
    stub = LogAdminServiceStub(pair.to_audit("gateway").get())
    with pytest.raises(grpc.RpcError) as caught:
        stub.Freeze(pb.FreezeRequest(), timeout=20, wait_for_ready=True)
    assert outcome(caught.value).code() is grpc.StatusCode.PERMISSION_DENIED
