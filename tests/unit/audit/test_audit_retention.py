"""Logs are kept as long as they have to be, and then nobody reads them while every proof holds."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Identity, parse_identity
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.kit.settings import load
from sealward.kit.spans import STATUS_OK, SpanHead, attribute
from sealward.tlog.logdir import verify_directory
from sealward.tlog.note import parse_vkeys
from services.audit.holds import Holds, Scope
from services.audit.index import Query
from services.audit.retention import DAY, Retention, SteadyClock
from services.audit.settings import AuditSettings
from services.audit.shard import PastShard
from tests.support.audit_shards import IN_2026, Clock, Logs
from tests.support.audit_suite import GATEWAY, entry_bytes, span_bytes

YEARS = 366 * DAY
# An event id (UUIDv7) of that time.
THEN = (IN_2026 // 1_000_000).to_bytes(6, "big") + b"\x70\x00\x80" + bytes(7)
CANARY = "MRN-canary-7731"
AUDIT = parse_identity("spiffe://sealward.local/service/audit")


class Kept(Logs):
    """Logs with what keeps them; wall clock and time since the start go together."""

    def __init__(self, folder: Path, clock: Clock, **options: Any) -> None:
        super().__init__(folder, clock=clock, tenants=("default",), **options)
        self.passed = Clock(0)
        self.steady = SteadyClock(clock, self.passed)
        self.holds = Holds(self.shards)
        self.retention = Retention(
            self.shards,
            self.parts.backend,
            self.holds,
            get_logger("test", io.StringIO()),
            years=10,
            clock=self.steady,
        )
        self.retention.resume()

    def pass_time(self, nanoseconds: int) -> None:
        self.clock.now += nanoseconds
        self.passed.now += nanoseconds

    def place(self, scope: Scope, patient: str = "") -> str:
        hold_id = self.holds.new_id()
        self.own("audit.hold", scope.encode(hold_id), patient)
        return hold_id

    def own(
        self, event_type: str, target: str, patient: str = "", identity: Identity = AUDIT
    ) -> None:
        values = {
            names.EVENT_TYPE: event_type,
            names.OUTCOME: "ok",
            names.TARGET: target,
            names.ACTOR_ID: "local",
        }
        parts = [*(attribute(name, value) for name, value in values.items()), STATUS_OK]
        span = SpanHead(event_type).build(self.clock.now, self.clock.now + 1, parts)
        body = entry_bytes(span=span, patient=patient)
        self.shards.append([self.maker.appended(body, identity)])

    @property
    def past(self) -> PastShard:
        return self.shards.of("default").past[-1]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """A log of 2026 that is archived, and its successor."""
    logs = Kept(tmp_path, Clock())
    logs.append(entry_bytes(event_id=THEN, patient=CANARY))
    logs.append(*(entry_bytes(patient=CANARY) for _ in range(299)))
    logs.append(entry_bytes(patient="other", span=span_bytes(extra={names.ACTOR_ID: "dr-jones"})))
    logs.rollover.turn("default")
    logs.retention.archive(logs.past)
    yield logs
    logs.close()


def refused(kept: Kept) -> str:
    with pytest.raises(SealwardError) as caught:
        kept.retention.check_purge(kept.past)
    assert caught.value.reason in (Reason.LOG_RETAINED, Reason.LOG_STATE)
    return caught.value.message


def test_an_archive_lists_its_files_and_is_read_only(kept: Kept) -> None:
    past = kept.past
    assert past.state == "archived"
    files = json.loads(past.place.manifest.read_text())["files"]
    assert {"log.db", "log.entries", "log/checkpoint", "log/tile/0/000"} <= files.keys()
    for name, digest in files.items():
        path = past.place.folder / name
        assert sha256(path.read_bytes()).hexdigest() == digest
        assert path.stat().st_mode & 0o777 == 0o400
    assert not list(past.place.folder.glob("log.db-*"))
    # It still answers: proofs, entries, rows.
    (row,) = past.index.rows(Query(limit=1))
    placed, _ = past.log.receipt(row[1].event_id)
    assert past.segments.open(placed.leaf[:49], placed.leaf[49:])
    report = verify_directory(past.place.published, parse_vkeys("\n".join(past.vkeys)))
    assert report.size == 302
    with pytest.raises(SealwardError):
        kept.retention.archive(past)


def test_a_log_is_archived_while_events_are_looked_up_in_it(tmp_path: Path) -> None:
    """Ids of the last day are looked up in the log that ended with every append."""
    logs = Kept(tmp_path, Clock())
    logs.append(*(entry_bytes() for _ in range(50)))
    stop, trouble, looked = threading.Event(), [], [0]
    try:
        for _ in range(5):
            logs.rollover.turn("default")
            past = next(shard for shard in logs.shards.of("default").past if _frozen(shard))
            (leaf,) = past.store.leaves(0, 1)
            ids = [leaf[1:17]]

            def look(shard: PastShard = past, ids: list[bytes] = ids) -> None:
                while not stop.is_set():
                    try:
                        assert shard.find(ids)
                    except Exception as error:  # noqa: BLE001 - any is the finding
                        trouble.append(error)
                    looked[0] += 1

            stop.clear()
            readers = [threading.Thread(target=look) for _ in range(3)]
            for reader in readers:
                reader.start()
            logs.retention.archive(past)
            stop.set()
            for reader in readers:
                reader.join(20)
            assert past.state == "archived"
    finally:
        stop.set()
        logs.close()
    assert trouble == []
    assert looked[0] > 10


def _frozen(shard: PastShard) -> bool:
    return shard.state == "frozen"


def test_nothing_is_purged_before_its_time(kept: Kept) -> None:
    assert "retention" in refused(kept)
    kept.pass_time(kept.retention.until(kept.past) - kept.clock.now - DAY)
    assert "retention" in refused(kept)
    kept.pass_time(DAY)
    kept.retention.check_purge(kept.past)


def test_a_clock_that_was_set_forward_purges_nothing(kept: Kept) -> None:
    kept.clock.now += 20 * YEARS
    assert "clock" in refused(kept)


def test_a_clock_that_was_wrong_when_the_log_ended_shortens_nothing(tmp_path: Path) -> None:
    logs = Kept(tmp_path, Clock(IN_2026))
    logs.append(entry_bytes(span=span_bytes(start=IN_2026)))
    # The clock goes back for the moment of the turn.
    logs.clock.now -= 5 * YEARS
    logs.rollover.turn("default")
    logs.retention.archive(logs.past)
    logs.close()
    logs = Kept(tmp_path, Clock(IN_2026 + 6 * YEARS))
    assert "retention" in refused(logs)
    logs.close()


def test_a_young_entry_keeps_its_log(tmp_path: Path) -> None:
    logs = Kept(tmp_path, Clock())
    logs.append(entry_bytes(span=span_bytes(start=IN_2026 + 3 * YEARS)))
    logs.rollover.turn("default")
    logs.retention.archive(logs.past)
    logs.pass_time(11 * YEARS)
    assert "younger" in refused(logs)
    logs.close()


@pytest.mark.parametrize(
    ("scope", "patient", "covers"),
    [
        (Scope("default"), "", True),
        (Scope("default", patient=True), CANARY, True),
        (Scope("default", patient=True), "nobody", False),
        (Scope("default", user="dr-jones"), "", True),
        (Scope("default", user="dr-who"), "", False),
        (Scope("default", user="dr-jones", patient=True), CANARY, False),
        (Scope("default", since=IN_2026 - DAY, until=IN_2026 + DAY), "", True),
        (Scope("default", since=IN_2026 + DAY), "", False),
        (Scope("north"), "", False),
    ],
)
def test_a_hold_keeps_what_it_covers(kept: Kept, scope: Scope, patient: str, covers: bool) -> None:
    kept.pass_time(11 * YEARS)
    kept.retention.check_purge(kept.past)
    hold_id = kept.place(scope, patient)
    if not covers:
        kept.retention.check_purge(kept.past)
        return
    assert "hold" in refused(kept)
    assert [hold.id for hold in kept.holds.covering(kept.past)] == [hold_id]
    # A log that is turned does not lose it.
    kept.rollover.turn("default")
    assert "hold" in refused(kept)
    kept.own("audit.release", kept.holds.get(hold_id).scope.encode(hold_id))
    kept.retention.check_purge(kept.past)
    assert not kept.holds.standing()


def test_another_service_can_neither_place_nor_release_a_hold(kept: Kept) -> None:
    forged = Scope("default").encode(kept.holds.new_id())
    kept.own("audit.hold", forged, identity=GATEWAY)
    # What makes no sense would hide the others if it were read.
    kept.own("audit.hold", "since=never hold=x", identity=GATEWAY)
    assert kept.holds.standing() == []
    hold = kept.place(Scope("default"))
    for identity in (GATEWAY, parse_identity("spiffe://sealward.local/service/keys")):
        kept.own("audit.release", Scope("default").encode(hold), identity=identity)
    assert [h.id for h in kept.holds.standing()] == [hold]
    kept.pass_time(20 * YEARS)
    assert "hold" in refused(kept)
    kept.own("audit.release", Scope("default").encode(hold))
    assert kept.holds.standing() == []


def test_a_hold_on_one_log_by_name(kept: Kept) -> None:
    kept.pass_time(11 * YEARS)
    kept.place(Scope("default", origin=kept.past.origin))
    assert "hold" in refused(kept)


def test_a_hidden_row_does_not_hide_from_a_hold(kept: Kept) -> None:
    import sqlite3

    kept.pass_time(11 * YEARS)
    kept.place(Scope("default", user="dr-jones"))
    kept.past.close()
    db = sqlite3.connect(kept.past.place.folder / "index.db")
    db.execute("DELETE FROM events WHERE actor = 'dr-jones'")
    db.commit()
    db.close()
    assert "hold" in refused(kept)


def test_the_log_of_a_standing_hold_is_kept(tmp_path: Path) -> None:
    logs = Kept(tmp_path, Clock())
    logs.place(Scope("default", user="nobody"))
    logs.rollover.turn("default")
    logs.retention.archive(logs.past)
    logs.pass_time(11 * YEARS)
    assert "hold" in refused(logs)
    logs.close()


def test_a_log_must_be_archived_and_the_oldest(kept: Kept) -> None:
    kept.pass_time(DAY)
    kept.rollover.turn("default")
    kept.pass_time(11 * YEARS)
    younger = kept.shards.of("default").past[0]
    with pytest.raises(SealwardError) as caught:
        kept.retention.check_purge(younger)
    assert caught.value.reason is Reason.LOG_STATE
    kept.retention.archive(younger)
    with pytest.raises(SealwardError) as caught:
        kept.retention.check_purge(younger)
    assert "older" in caught.value.message


def wrapped_keys(kept: Kept) -> list[bytes]:
    """Everything in the store that opens or signs something."""
    store = kept.past.store
    rows = [(name, store.get(name) or b"") for name in store.names("")]
    secret = ("wrapped", "sealed")
    return [v for n, v in rows if n.startswith("segment/") or n.endswith(secret)]


def test_a_purged_log_opens_no_more_and_every_proof_holds(kept: Kept, tmp_path: Path) -> None:
    past = kept.past
    keys = wrapped_keys(kept)
    assert len(keys) > 4
    folder = past.place.folder
    stored = (folder / "log.db").read_bytes()
    assert all(key in stored for key in keys)
    pseudonym = past.index_keys.pseudonym(CANARY).encode()
    past.indexer.wait(302)
    past.close()
    assert pseudonym in (folder / "index.db").read_bytes()
    leaf = past.store.leaves(0, 1)[0]
    assert leaf[1:17] == THEN
    path = past.log.placed(0, 302).path
    kept.pass_time(11 * YEARS)
    kept.retention.check_purge(past)
    kept.retention.purge(past)
    assert past.state == "purged"
    for file in (f for f in folder.rglob("*") if f.is_file()):
        data = file.read_bytes()
        assert not [key for key in keys if key in data], file
        assert pseudonym not in data, file
    assert not (folder / "index.db").exists()
    placed, checkpoint = past.log.receipt(THEN)
    assert (placed.leaf, placed.path, checkpoint) == (leaf, path, past.final)
    for part in ("segments", "index", "index_keys", "indexer"):
        with pytest.raises(SealwardError) as caught:
            getattr(past, part)
        assert caught.value.reason is Reason.LOG_PURGED
    vkeys = parse_vkeys((tmp_path / "log.vkey").read_text())
    assert verify_directory(past.place.published, vkeys).size == 302
    assert kept.shards.readable() == [kept.shards.current()]
    # An id from then is taken, whoever comes with it.
    (again,) = kept.append(entry_bytes(event_id=THEN))
    assert isinstance(again, SealwardError)
    assert again.reason is Reason.ALREADY_EXISTS
    with pytest.raises(SealwardError):
        kept.retention.check_purge(past)


@pytest.mark.parametrize("at", range(1, 6))
def test_a_purge_that_was_killed_is_completed(
    kept: Kept, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.audit.embedded_store import EmbeddedStore

    kept.pass_time(11 * YEARS)
    past = kept.past
    left = at
    forget = EmbeddedStore.forget

    def die(store: EmbeddedStore, prefix: str) -> int:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return forget(store, prefix)

    monkeypatch.setattr(EmbeddedStore, "forget", die)
    with pytest.raises(KeyboardInterrupt):
        kept.retention.purge(past)
    monkeypatch.undo()
    kept.close()
    again = Kept(tmp_path, kept.clock)
    try:
        assert again.past.state == "purged"
        assert not wrapped_keys(again)
        assert again.past.place.manifest.exists()
        assert again.past.log.head[0] == 302
    finally:
        again.close()


def test_less_than_six_years_ends_the_start(tmp_path: Path) -> None:
    given = {"SEALWARD_AUDIT_RETENTION_YEARS": "5"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **given,
            "SEALWARD_AUDIT_DATA_DIR": str(tmp_path),
            "SEALWARD_AUDIT_ENROLL_DIR": str(tmp_path),
        }.items():
            patch.setenv(name, value)
        with pytest.raises(StartupError, match="RETENTION_YEARS"):
            load(AuditSettings, "audit")
        patch.setenv("SEALWARD_AUDIT_RETENTION_YEARS", "6")
        assert load(AuditSettings, "audit").retention_years == 6


def test_the_clock_may_drift_but_not_jump() -> None:
    wall, passed = Clock(), Clock(0)
    clock = SteadyClock(wall, passed)
    for step, steady in ((DAY, True), (2, False), (-3 * DAY, False)):
        wall.now += step
        assert clock.steady() is steady, step
