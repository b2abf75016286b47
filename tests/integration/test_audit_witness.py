"""Real audit and keys processes: what is cosigned, and that a rollback ends the start."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.api.audit.v1 import audit_pb2, cosigning_pb2, logs_pb2
from sealward.api.audit.v1.cosigning_pb2_grpc import CosigningServiceStub
from sealward.api.audit.v1.logs_pb2_grpc import LogAdminServiceStub
from sealward.api.keys.v1 import witness_pb2
from sealward.api.keys.v1.witness_pb2_grpc import WitnessServiceStub
from sealward.kit.channel import Channels
from sealward.kit.enroll import enroll
from sealward.kit.recorder import new_event_id
from sealward.kit.tls import Credentials
from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.leaf import SALT_SIZE
from sealward.tlog.logdir import verify_directory
from sealward.tlog.merkle import split_hashes
from sealward.tlog.note import parse_note, parse_vkeys
from sealward.tlog.policy import CosignedCheckpoint, Policy, open_cosigned
from sealward.tlog.receipt import format_receipt, open_receipt
from tests.integration.test_audit_service import AppendStream, Pair, reason_of
from tests.support.audit_suite import entry_bytes
from tests.support.inference_suite import until


class Watched(Pair):
    """The pair, and what the witness says."""

    def to_keys(self, name: str) -> WitnessServiceStub:
        key = f"keys/{name}"
        if key not in self.channels:
            credentials = Credentials()
            credentials.install(enroll(self.folder / "enroll", name, 20))
            self.channels[key] = Channels(credentials, self.keys.address, "keys.sealward.local")
        return WitnessServiceStub(self.channels[key].get())

    def witness(self) -> witness_pb2.GetWitnessResponse:
        return self.to_keys("admin").GetWitness(
            witness_pb2.GetWitnessRequest(), timeout=20, wait_for_ready=True
        )

    def cosigning(self) -> cosigning_pb2.GetCosigningResponse:
        stub = CosigningServiceStub(self.to_audit("admin").get())
        return stub.GetCosigning(
            cosigning_pb2.GetCosigningRequest(), timeout=20, wait_for_ready=True
        )

    def healthy(self) -> tuple[bool, bool]:
        """Whether audit is ready, and whether its witnesses are."""
        stub = health_pb2_grpc.HealthStub(self.to_audit("admin").get())
        ready, witness = (
            stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status
            == health_pb2.HealthCheckResponse.SERVING
            for name in ("", "witness")
        )
        return ready, witness

    def append(self, count: int = 1) -> list[bytes]:
        stream = AppendStream(self.to_audit().get())
        ids = [new_event_id() for _ in range(count)]
        replies, _ = stream.ask([entry_bytes(event_id=event_id) for event_id in ids])
        assert all(reply.code == 0 for reply in replies)
        stream.close()
        return ids

    @property
    def policy(self) -> Policy:
        return Policy.parse((self.audit.data / "log.policy").read_bytes())

    def cosigned(self) -> CosignedCheckpoint | None:
        """The newest cosigned checkpoint that is published."""
        try:
            note = (self.audit.data / "log" / "checkpoint.cosigned").read_bytes()
        except FileNotFoundError:
            return None
        return open_cosigned(note, self.policy)

    def cosigned_size(self) -> int:
        found = self.cosigned()
        return found.checkpoint.size if found else 0

    def receipt(self, event_id: bytes) -> audit_pb2.GetReceiptResponse:
        request = audit_pb2.GetReceiptRequest(event_id=event_id, cosigned=True)
        return self.stub("gateway").GetReceipt(request, timeout=20, wait_for_ready=True)

    def receipt_when_cosigned(self, event_id: bytes) -> audit_pb2.GetReceiptResponse:
        found: list[audit_pb2.GetReceiptResponse] = []

        def there() -> bool:
            try:
                found.append(self.receipt(event_id))
            except grpc.RpcError as error:
                if reason_of(error) != "NOT_COSIGNED":
                    raise
                return False
            return True

        until(there)
        return found[0]

    def refused(self) -> str:
        """Start audit, which has to refuse; return its one line."""
        before = len(self.audit.log.read_text().splitlines())
        process = self.audit.launch()
        assert process.wait(60) == 1
        self.audit.process = None
        lines = [
            line
            for line in self.audit.log.read_text().splitlines()[before:]
            if line.startswith("error: ")
        ]
        assert len(lines) == 1
        return lines[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    made = Watched(tmp_path_factory.mktemp("witness"))
    try:
        made.start()
        yield made
    finally:
        made.end()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Watched]:
    """A pair that a test may break."""
    made = Watched(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.end()


def test_what_is_published_is_cosigned_and_proves_events(pair: Watched) -> None:
    (event_id,) = pair.append()
    answer = pair.receipt_when_cosigned(event_id)
    opened = open_cosigned(answer.checkpoint, pair.policy)
    assert [c.witness.name for c in opened.cosignatures] == ["built-in"]
    # Both types are there, whoever asks for which.
    assert len(parse_note(answer.checkpoint).signatures) == 3
    receipt = answer.receipt
    proof = format_receipt(
        receipt.log_index, receipt.path, receipt.leaf, bytes(SALT_SIZE), answer.checkpoint
    )
    assert open_receipt(proof, [log.verifier for log in pair.policy.logs]).event_id == event_id
    # The published files say the same, and are a log.
    until(lambda: pair.cosigned_size() > receipt.log_index)
    known = pair.cosigned()
    assert known is not None
    report = verify_directory(
        pair.audit.data / "log",
        parse_vkeys((pair.audit.data / "log.vkey").read_text()),
        known=[known.checkpoint],
    )
    assert report.unknown == ()
    (row,) = pair.cosigning().logs
    assert row.cosigned_size > receipt.log_index
    (witness,) = pair.cosigning().witnesses
    assert (witness.name, witness.url, witness.counts, witness.state) == (
        "built-in",
        "",
        True,
        "ok",
    )


def test_a_log_at_rest_is_cosigned_to_its_end(pair: Watched) -> None:
    pair.append(3)

    def settled() -> bool:
        # The checkpoint itself carries the lines now.
        note = (pair.audit.data / "log" / "checkpoint").read_bytes()
        try:
            size = open_cosigned(note, pair.policy).checkpoint.size
        except TlogError:
            return False
        (log,) = pair.cosigning().logs
        return (size, log.cosigned_size, log.waiting_seconds) == (log.size, log.size, 0)

    until(settled)
    assert pair.audit.log.read_text().count("witness.round-failed") == 0


def test_the_hot_paths_receipt_has_the_logs_line_alone(pair: Watched) -> None:
    stream = AppendStream(pair.to_audit().get())
    _, note = stream.ask([entry_bytes()])
    stream.close()
    assert len(parse_note(note).signatures) == 1


def test_an_event_nobody_knows_is_not_found_cosigned_or_not(pair: Watched) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pair.receipt(new_event_id())
    assert reason_of(caught.value) == "NOT_FOUND"


@pytest.mark.parametrize("name", ["gateway", "inference"])
def test_only_audit_may_ask_the_witness(pair: Watched, name: str) -> None:
    stub = pair.to_keys(name)
    for call, request in (
        (stub.AddCheckpoint, witness_pb2.AddCheckpointRequest()),
        (stub.AddLog, witness_pb2.AddLogRequest()),
        (stub.ForgetLog, witness_pb2.ForgetLogRequest()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=20, wait_for_ready=True)
        assert reason_of(caught.value) == "IDENTITY_FORBIDDEN"


def test_the_clock_stands_in_the_log(pair: Watched) -> None:
    until(lambda: bool(pair.events(type="audit.clock")))
    event = pair.events(type="audit.clock")[-1]
    request = audit_pb2.GetEventRequest(event_id=event.event_id)
    span = Span.FromString(pair.stub().GetEvent(request, timeout=20).span)
    values = {pair.key: pair.value for pair in span.attributes}
    assert values["sealward.clock.source"].string_value.startswith("system clock (")
    assert values["sealward.clock.synchronised"].string_value in {"yes", "no", "unknown"}
    assert values["sealward.target"].string_value == event.origin
    assert values["sealward.count"].int_value > 0
    # One at the start, and at most one a minute.
    assert len(pair.events(type="audit.clock")) <= 3


def test_the_log_was_taken_on_with_a_record(pair: Watched) -> None:
    (log,) = pair.witness().logs
    assert log.origin == pair.events(limit=1)[0].origin
    assert not log.successor
    assert not log.conflict


# --- anti-rollback ------------------------------------------------------------------------------


def test_a_store_that_was_rolled_back_with_its_files_ends_the_start(own: Watched) -> None:
    """The promise: an old copy of log.db and of log/ agree with each other, and are not let in."""
    own.append(3)
    own.audit.end()
    shutil.copytree(own.audit.data, own.folder / "old")
    own.audit.start()
    own.append(5)
    own.audit.end()
    new = own.folder / "new"
    own.audit.data.rename(new)
    shutil.copytree(own.folder / "old", own.audit.data)
    line = own.refused()
    assert "rolled back" in line
    assert "docs/runbooks/witness.md" in line
    # Again, and after a restart of keys: it knows from its disk.
    own.keys.end(signal.SIGKILL)
    own.keys.start()
    assert own.refused() == line
    # With what is really there it goes on.
    shutil.rmtree(own.audit.data)
    new.rename(own.audit.data)
    own.audit.start()
    own.receipt_when_cosigned(own.append()[0])


def test_a_store_that_was_lost_is_not_begun_anew(own: Watched) -> None:
    own.append(3)
    until(lambda: own.cosigned_size() > 0)
    own.audit.end()
    own.audit.data.rename(own.folder / "lost")
    line = own.refused()
    assert "has not ended: the store was lost, rolled back or exchanged" in line
    # The operator says so, and it is recorded; then a new log begins.
    (log,) = own.witness().logs
    stub = own.to_keys("admin")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ForgetLog(witness_pb2.ForgetLogRequest(origin=log.origin), timeout=20)
    assert reason_of(caught.value) == "FIELD_INVALID"
    stub.ForgetLog(witness_pb2.ForgetLogRequest(origin=log.origin, confirm=log.origin), timeout=20)
    shutil.rmtree(own.audit.data)
    own.audit.start()
    own.receipt_when_cosigned(own.append()[0])
    (fresh,) = own.witness().logs
    assert fresh.origin != log.origin
    forgotten = list((own.keys.data / "witness" / "forgotten").iterdir())
    assert len(forgotten) == 1


def test_another_history_of_the_same_length_ends_the_start(own: Watched) -> None:
    own.audit.end()
    shutil.copytree(own.audit.data, own.folder / "old")
    witness = own.keys.data / "witness"
    shutil.copytree(witness, own.folder / "witness-old")
    own.audit.start()
    own.append(3)
    own.audit.end()
    # The same log grows once more from the same beginning, seen by a witness that was set back ...
    own.keys.end()
    new = own.folder / "witness-new"
    witness.rename(new)
    shutil.copytree(own.folder / "witness-old", witness)
    own.audit.data.rename(own.folder / "first")
    shutil.copytree(own.folder / "old", own.audit.data)
    own.keys.start()
    own.audit.start()
    own.append(9)
    own.audit.end()
    # ... and meets the one that was not.
    own.keys.end()
    shutil.rmtree(witness)
    new.rename(witness)
    own.keys.start()
    assert "is not the log" in own.refused()


# --- outages --------------------------------------------------------------------------------------


def test_a_witness_that_is_away_stops_nothing_and_shows(own: Watched) -> None:
    own.receipt_when_cosigned(own.append()[0])
    assert own.cosigning().witnesses[0].state == "ok"
    until(lambda: own.healthy() == (True, True))
    own.keys.end(signal.SIGKILL)
    (event_id,) = own.append()
    with pytest.raises(grpc.RpcError) as caught:
        own.receipt(event_id)
    assert reason_of(caught.value) == "NOT_COSIGNED"

    def shows() -> bool:
        found = own.cosigning()
        return found.witnesses[0].state == "away" and found.logs[0].waiting_seconds > 0

    until(shows)
    # It is no part of readiness.
    until(lambda: own.healthy() == (True, False))
    own.keys.start()
    own.receipt_when_cosigned(event_id)
    assert own.cosigning().witnesses[0].state == "ok"


def test_killed_anywhere_what_was_cosigned_is_one_history(own: Watched) -> None:
    seen: list[CosignedCheckpoint] = []
    for process in (own.keys, own.audit, own.keys, own.audit):
        own.append(4)
        answer = own.receipt_when_cosigned(own.append()[0])
        seen.append(open_cosigned(answer.checkpoint, own.policy))
        process.end(signal.SIGKILL)
        process.start()
    own.receipt_when_cosigned(own.append()[0])
    vkeys = parse_vkeys((own.audit.data / "log.vkey").read_text())
    verify_directory(own.audit.data / "log", vkeys, known=[s.checkpoint for s in seen])


def test_releasing_waits_for_the_witness_where_it_is_told_to(tmp_path: Path) -> None:
    own = Watched(tmp_path)
    own.audit.settings["WITNESS_HOLD_SECONDS"] = 1
    try:
        own.start()
        own.receipt_when_cosigned(own.append()[0])
        own.keys.end(signal.SIGKILL)
        stream = AppendStream(own.to_audit().get())

        def held() -> bool:
            replies, _ = stream.ask([entry_bytes()])
            if replies[0].code:
                assert replies[0].message == "the audit log waits for its witnesses"
            return bool(replies[0].code)

        until(held)
        own.keys.start()
        until(lambda: not held())
        stream.close()
    finally:
        own.end()


# --- logs that follow one another -----------------------------------------------------------------


def test_the_next_log_is_vouched_for_and_the_last_one_ends_cosigned(own: Watched) -> None:
    (event_id,) = own.append()
    own.receipt_when_cosigned(event_id)
    admin = LogAdminServiceStub(own.to_audit("admin").get())
    ended = admin.Freeze(logs_pb2.FreezeRequest(), timeout=60).ended
    (later,) = own.append()
    own.receipt_when_cosigned(later)
    # The event of the log that has ended, against its cosigned end.
    until(lambda: {log.origin: log.successor for log in own.witness().logs}[ended.origin] != "")
    answer = own.receipt_when_cosigned(event_id)

    def final() -> bool:
        head = Checkpoint.parse(parse_note(own.receipt(event_id).checkpoint).text)
        return (head.origin, head.size) == (ended.origin, ended.size)

    until(final)
    vkeys = parse_vkeys("\n".join(ended.vkeys))
    policy = own.policy
    assert open_cosigned(answer.checkpoint, policy, vkeys).checkpoint.origin == ended.origin
    place = own.audit.data / ended.folder / "log"
    note = (place / "checkpoint.cosigned").read_bytes()
    assert open_cosigned(note, policy, vkeys).checkpoint.size == ended.size
    verify_directory(place, vkeys)
    # And after a start nothing is asked for again.
    own.audit.end()
    own.audit.start()
    assert own.receipt(event_id).checkpoint == answer.checkpoint or final()
    assert split_hashes(own.receipt(event_id).receipt.path)


def test_a_new_key_of_the_log_is_made_known(own: Watched) -> None:
    admin = LogAdminServiceStub(own.to_audit("admin").get())
    rotated = admin.RotateLogKey(logs_pb2.RotateLogKeyRequest(), timeout=60)
    own.receipt_when_cosigned(own.append()[0])
    # While both sign the old key is enough; the policy file has both.
    until(lambda: len(own.policy.logs) == 2)
    assert rotated.new_vkey != rotated.old_vkey
