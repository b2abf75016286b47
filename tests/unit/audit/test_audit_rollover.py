"""One log of a tenant ends and the next begins: nothing is lost, doubled or hidden between them."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.kit.seam import Answer, Call
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.logchange import LogFinal, LogSuccessor, parse_change_leaf
from sealward.tlog.logdir import verify_directory
from sealward.tlog.merkle import leaf_hash, split_hashes, verify_inclusion
from sealward.tlog.note import parse_vkeys
from services.audit.backend import FileBackend, Place
from services.audit.embedded_store import EmbeddedStore
from services.audit.index import Query
from services.audit.log import Placed
from services.audit.pump import AppendPump
from services.audit.shard import PastShard, Shard
from tests.support.audit_shards import YEAR, Clock, Logs, opened
from tests.support.audit_suite import GATEWAY, WORKLOAD, entry_bytes, span_bytes


def holds(result: Any, vkey_file: Path) -> Placed:
    """Verify a result as a stranger does, with the file of keys alone."""
    assert isinstance(result, Placed), result
    head = open_checkpoint(result.checkpoint, parse_vkeys(vkey_file.read_text()))
    path = split_hashes(result.path)
    verify_inclusion(leaf_hash(result.leaf), result.index, head.size, path, head.root)
    return result


def events(shard: Shard, **query: Any) -> list[bytes]:
    shard.indexer.wait(shard.log.head[0])
    return [row.event_id for _, row in shard.index.rows(Query(**query))]


def test_each_tenant_has_a_log_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        batch = [entry_bytes(), entry_bytes(tenant="north"), entry_bytes(tenant="default")]
        results = logs.append(*batch)
        assert [holds(r, tmp_path / "log.vkey").index for r in results] == [0, 0, 1]
        assert results[0].checkpoint == results[2].checkpoint != results[1].checkpoint
        north = logs.shards.current("north")
        assert north.origin == logs.shards.current().origin.replace("default", "north")
        assert north.place.folder == tmp_path / "logs/north/2026"
        with pytest.raises(SealwardError) as caught:
            logs.append(entry_bytes(tenant="south"))
        assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, "tenant")
        # The same patient has another pseudonym, under a key of another tenant.
        keys = {logs.shards.current(t).index_keys.pseudonym("p") for t in logs.shards.tenants}
        assert len(keys) == 2
    with opened(tmp_path) as logs:
        assert [logs.shards.current(t).log.head[0] for t in logs.shards.tenants] == [2, 1]


def test_one_tenants_failure_is_not_the_others(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        one, two = entry_bytes(), entry_bytes(tenant="north")
        candidates = [logs.maker.appended(body, WORKLOAD) for body in (one, two)]
        logs.shards.current("north").store.close()
        first, second = logs.shards.append(candidates).results
        assert isinstance(first, Placed)
        assert isinstance(second, SealwardError)


@pytest.mark.parametrize("tenant", ["default", "north"])
def test_a_log_is_followed_by_the_next(tmp_path: Path, tenant: str) -> None:
    with opened(tmp_path) as logs:
        before = logs.shards.current(tenant)
        old = [entry_bytes(tenant=tenant, patient="p") for _ in range(600)]
        logs.append(*old)
        logs.rollover.turn(tenant)
        (placed,) = logs.append(entry_bytes(tenant=tenant, patient="p"))
        new = logs.shards.current(tenant)
        assert new.origin == before.origin + "-2"
        assert holds(placed, tmp_path / "log.vkey").index == 1
        _check_chain(logs, tenant)
        place = tmp_path if tenant == "default" else tmp_path / "logs/north/2026-2"
        assert new.place.folder == place
        assert len(events(logs.shards.all(tenant)[1], limit=1000)) == 600
    # And so it is found again.
    with opened(tmp_path) as logs:
        _check_chain(logs, tenant)
        assert logs.shards.current(tenant).log.head[0] == 2
        assert logs.shards.by_origin(before.origin).state == "frozen"


def _check_chain(logs: Logs, tenant: str) -> None:
    """The last entry of the one names the other, whose first entry holds the one's end."""
    current, past = logs.shards.all(tenant)
    assert isinstance(past, PastShard)
    size, note = past.log.head
    keys = parse_vkeys("\n".join(past.vkeys))
    final = open_checkpoint(note, keys)
    assert (final.size, final.root) == (size, past.log.root(size))
    _, last = parse_change_leaf(past.store.leaves(size - 1, size)[0])
    _, first = parse_change_leaf(current.store.leaves(0, 1)[0])
    assert last == LogFinal(past.origin, current.origin, current.vkeys[0])
    assert first == LogSuccessor(current.origin, past.origin, note)
    report = verify_directory(past.place.published, keys)
    assert report.size == size


def test_an_id_of_the_ended_log_keeps_its_place(tmp_path: Path) -> None:
    # Ids tell when they were drawn: the log has to end at that time as well.
    with opened(tmp_path, clock=Clock(time.time_ns())) as logs:
        ids = [new_event_id() for _ in range(3)]
        bodies = [entry_bytes(event_id=i) for i in ids]
        first = logs.append(*bodies)
        span = span_bytes()
        exported = logs.maker.exported(span, WORKLOAD)
        logs.shards.append([exported])
        logs.rollover.turn("default")
        fresh = entry_bytes()
        again = logs.append(bodies[2], fresh, bodies[0])
        assert [holds(r, tmp_path / "log.vkey").index for r in again] == [2, 1, 0]
        assert again[0].leaf == first[2].leaf
        assert again[0].repeated
        assert logs.shards.current().log.head[0] == 2
        # Other content under an id of the ended log is refused, as in any log.
        (refused,) = logs.append(entry_bytes(event_id=ids[1]))
        assert isinstance(refused, SealwardError)
        assert refused.reason is Reason.ALREADY_EXISTS
        (repeated,) = logs.shards.append([logs.maker.exported(span, WORKLOAD)]).results
        assert isinstance(repeated, Placed)
        assert (repeated.index, repeated.repeated) == (3, True)


def test_who_appends_during_the_turn_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        stop = threading.Event()
        promised: list[bytes] = []
        failed: list[object] = []

        def write() -> None:
            while not stop.is_set():
                body = entry_bytes(event_id=(event_id := new_event_id()))
                try:
                    (result,) = logs.append(body)
                except SealwardError as error:
                    failed.append(error)
                    continue
                if isinstance(result, Placed):
                    promised.append(event_id)
                else:
                    failed.append(result)

        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        for _ in range(3):
            logs.rollover.turn("default")
        stop.set()
        for writer in writers:
            writer.join()
        assert not failed
        assert promised
        found = [i for shard in logs.shards.all() for i in events(shard, limit=100_000)]
        assert len(found) == len(set(found))
        assert set(promised) == set(found)
        assert len(logs.shards.all()) == 4


def test_the_year_turns_by_itself_and_the_next_key_is_known_before(tmp_path: Path) -> None:
    recorded: list[str] = []
    clock = Clock()
    with opened(
        tmp_path, clock=clock, before_turn=lambda _shard, origin: recorded.append(origin)
    ) as logs:
        logs.append(entry_bytes())
        logs.rollover.tick()
        assert len((tmp_path / "log.vkey").read_text().splitlines()) == 2
        # 2026-12-25: within the days of announcement.
        clock.now = 1_798_156_800_000_000_000
        logs.rollover.tick()
        lines = (tmp_path / "log.vkey").read_text().splitlines()
        assert len(lines) == 4
        assert not recorded
        clock.now = 1_798_761_600_000_000_000 + 1
        logs.rollover.tick()
        assert recorded == [logs.shards.current(t).origin for t in ("default", "north")]
        assert [logs.shards.current(t).name.label for t in logs.shards.tenants] == ["2027"] * 2
        # A client that had the file of December knows the log of January.
        (placed,) = logs.append(entry_bytes())
        (tmp_path / "december").write_text("\n".join(lines))
        holds(placed, tmp_path / "december")
        assert (tmp_path / "logs/default/2026/log.db").exists()


def test_a_clock_that_cannot_be_believed_turns_nothing(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock, steady=lambda: False) as logs:
        clock.now += YEAR
        logs.rollover.tick()
        assert logs.shards.current().name.label == "2026"


def test_what_cannot_be_recorded_does_not_happen(tmp_path: Path) -> None:
    def refuse(_shard: object, _origin: str) -> None:
        raise SealwardError(Reason.AUDIT_UNAVAILABLE, "full", retry_after=1.0)

    clock = Clock()
    with opened(tmp_path, clock=clock, before_turn=refuse) as logs:
        clock.now += YEAR
        logs.rollover.tick()
        assert logs.shards.current().name.label == "2026"
        assert logs.append(entry_bytes())[0].index == 0


def test_a_key_announced_for_next_year_stays_announced(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        logs.rollover.announce("default", "2027")
        line = (tmp_path / "log.vkey").read_text().splitlines()[1]
        logs.rollover.turn("default")
        assert line in (tmp_path / "log.vkey").read_text().splitlines()
        logs.rollover.turn("default", "2027")
        assert logs.shards.current().vkeys == [line]


def test_keys_away_no_turn_and_no_stop(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        logs.append(entry_bytes())
        logs.ring.down = True
        with pytest.raises(SealwardError):
            logs.rollover.turn("default")
        logs.ring.down = False
        assert logs.append(entry_bytes())[0].index == 1
        logs.rollover.turn("default")
        assert len(logs.shards.all()) == 2


def test_changed_hashes_of_an_ended_log_are_noticed(tmp_path: Path) -> None:
    import sqlite3

    from services.audit.store import StoreError

    with opened(tmp_path) as logs:
        logs.append(*(entry_bytes() for _ in range(300)))
        logs.rollover.turn("default")
    db = sqlite3.connect(tmp_path / "logs/default/2026/log.db")
    db.execute("UPDATE meta SET value = zeroblob(32) WHERE name = 'final/roots'")
    db.commit()
    db.close()
    with opened(tmp_path) as logs, pytest.raises(StoreError):
        _ = logs.shards.all()[1].log


def test_a_turn_that_fails_halfway_is_completed_and_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, backend=FailingBackend()) as logs:
        backend = logs.parts.backend
        assert isinstance(backend, FailingBackend)
        logs.append(entry_bytes())
        backend.broken = True
        with pytest.raises(OSError, match="no"):
            logs.rollover.turn("default")
        with pytest.raises(SealwardError) as caught:
            logs.rollover.turn("default")
        assert caught.value.retry_after
        logs.rollover.tick()
        assert len(logs.shards.all()) == 1
        # Who appends now waits, and goes on when the successor is there.
        waiting: list[Any] = []
        writer = threading.Thread(target=lambda: waiting.extend(logs.append(entry_bytes())))
        writer.start()
        backend.broken = False
        logs.rollover._again = 0.0
        logs.rollover.tick()
        writer.join()
        assert [placed.index for placed in waiting] == [1]
        _check_chain(logs, "default")


class FailingBackend(FileBackend):
    """Moves nothing while it is broken."""

    broken = False

    def move(self, old: Place, new: Place) -> None:
        if self.broken:
            raise OSError("no")
        super().move(old, new)


def test_an_ended_log_is_not_read_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as logs:
        logs.append(*(entry_bytes() for _ in range(600)))
        logs.rollover.turn("default")
    read: list[tuple[str, int, int]] = []
    leaves, hashes = EmbeddedStore.leaves, EmbeddedStore.hashes

    def seen_leaves(store: EmbeddedStore, start: int, end: int) -> list[bytes]:
        read.append((store._path.parent.name, start, end))
        return leaves(store, start, end)

    def seen_hashes(store: EmbeddedStore, start: int, end: int) -> bytes:
        read.append((store._path.parent.name, start, end))
        return hashes(store, start, end)

    monkeypatch.setattr(EmbeddedStore, "leaves", seen_leaves)
    monkeypatch.setattr(EmbeddedStore, "hashes", seen_hashes)
    with opened(tmp_path) as logs:
        assert not [entry for entry in read if entry[0] == "2026"]
        log = logs.shards.all()[1].log
        # The first proof costs the hashes after the last full tile, and those of one tile.
        log.consistency(300, 601)
        assert [e for e in read if e[0] == "2026"] == [("2026", 512, 601), ("2026", 256, 512)]
        _check_chain(logs, "default")


def test_one_batch_of_two_tenants_has_two_checkpoints(tmp_path: Path) -> None:
    class Wire:
        def __init__(self, calls: list[Call]) -> None:
            self.batches = [calls, []]
            self.groups: list[tuple[list[int], bytes]] = []

        def recv(self) -> list[Call]:
            return self.batches.pop(0)

        def reply(self, answers: Sequence[Answer], shared: bytes = b"") -> None:
            self.groups.append(([a.id for a in answers if not a.error], shared))

        def cancelled(self, call_id: int) -> bool:
            return not call_id

    def call(number: int, tenant: str) -> Call:
        peer = Peer(GATEWAY, bytes(32), "ipv4:1")
        return Call(number, "Append", peer, {}, float("inf"), entry_bytes(tenant=tenant))

    with opened(tmp_path) as logs:
        wire = Wire([call(1, ""), call(2, "north"), call(3, "south"), call(4, "default")])
        logger = get_logger("test", io.StringIO())
        pump = AppendPump(wire, logs.shards, logs.maker, logger, lambda _c: None)
        pump.start()
        pump.join(20)
        heads = [logs.shards.current(t).log.head[1] for t in logs.shards.tenants]
        assert {shared: ids for ids, shared in wire.groups if ids} == {
            heads[0]: [1, 4],
            heads[1]: [2],
        }
