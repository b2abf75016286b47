"""The log: places with proofs, idempotency, restarts, and what it does when something fails."""

from __future__ import annotations

import hmac
import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.leaf import PREFIX_SIZE, parse_leaf
from sealward.tlog.merkle import leaf_hash, split_hashes, verify_consistency, verify_inclusion
from services.audit.digests import Hmac
from services.audit.log import Committed, Placed
from services.audit.store import Head, StoreBrokenError, StoreFullError
from tests.support.audit_entries import as_version_1, as_version_3, flip, records
from tests.support.audit_suite import GATEWAY, Ring, Suite, entry_bytes, span_bytes

Reopen = Callable[..., Suite]
FILES = {
    "log.entries",
    *(f"{name}{suffix}" for name in ("log.db", "index.db") for suffix in ("", "-wal", "-shm")),
}


def placed(done: Committed) -> list[Placed]:
    assert all(isinstance(result, Placed) for result in done.results)
    return [result for result in done.results if isinstance(result, Placed)]


def check(suite: Suite, done: Committed) -> Checkpoint:
    """Verify every receipt of a batch as an outsider would."""
    checkpoint = open_checkpoint(done.checkpoint, (suite.signer.verifier,), suite.keys.origin)
    for place in placed(done):
        verify_inclusion(
            leaf_hash(place.leaf),
            place.index,
            checkpoint.size,
            split_hashes(place.path),
            checkpoint.root,
        )
    return checkpoint


def test_every_receipt_verifies_against_the_shared_checkpoint(suite: Suite) -> None:
    sizes = []
    for count in (1, 2, 1, 5, 16, 3):
        done = suite.log.append([suite.entry() for _ in range(count)])
        assert done.added == count
        sizes.append(check(suite, done))
    assert [s.size for s in sizes] == [1, 3, 4, 9, 25, 28]
    for old, new in itertools.pairwise(sizes):
        proof = split_hashes(suite.log.consistency(old.size, new.size))
        verify_consistency(old.size, new.size, proof, old.root, new.root)


def test_the_leaf_is_the_clear_part_and_a_span_that_opens(suite: Suite) -> None:
    event_id = new_event_id()
    candidate = suite.entry(
        event_id=event_id, binding=b"b" * 32, patient="MRN-0815", input_digest=b"i" * 32
    )
    (place,) = placed(suite.log.append([candidate]))
    leaf = parse_leaf(place.leaf)
    assert (leaf.event_id, leaf.binding) == (event_id, b"b" * 32)
    assert b"MRN-0815" not in place.leaf
    span = Span.FromString(suite.segments.open(place.leaf[:PREFIX_SIZE], leaf.sealed))
    values = {pair.key: pair.value.string_value for pair in span.attributes}
    assert values["sealward.patient.reference"] == "MRN-0815"
    assert values["sealward.patient"] == suite.index.pseudonym("MRN-0815")
    assert values["sealward.input.digest"] == suite.index.digest(b"i" * 32)
    assert values["sealward.producer.id"] == "gateway"
    with pytest.raises(SealwardError) as caught:
        suite.segments.open(b"\x02" + place.leaf[1:PREFIX_SIZE], leaf.sealed)
    assert caught.value.reason is Reason.SEAL_BROKEN


def test_same_bytes_get_the_same_receipt(suite: Suite) -> None:
    body = entry_bytes()
    (first,) = placed(suite.log.append([suite.maker.appended(body, GATEWAY)]))
    suite.log.append([suite.entry() for _ in range(5)])
    done = suite.log.append([suite.maker.appended(body, GATEWAY)])
    (again,) = placed(done)
    assert (again.index, again.leaf, again.repeated) == (first.index, first.leaf, True)
    assert done.added == 0
    assert check(suite, done).size == 6


def test_same_id_twice_in_one_batch_is_one_entry(suite: Suite) -> None:
    one = suite.entry()
    done = suite.log.append([one, suite.entry(), one])
    first, _, third = placed(done)
    assert (first.index, third.index, third.repeated) == (0, 0, True)
    assert check(suite, done).size == 2


def test_same_id_with_other_bytes_is_refused(suite: Suite) -> None:
    event_id = new_event_id()
    suite.log.append([suite.entry(event_id=event_id)])
    done = suite.log.append(
        [suite.entry(), suite.entry(event_id=event_id, binding=b"x" * 32), suite.entry()]
    )
    assert done.conflicts == [1]
    refused = done.results[1]
    assert isinstance(refused, SealwardError)
    assert refused.reason is Reason.ALREADY_EXISTS
    assert suite.log.head[0] == 3


def test_a_restart_goes_on_with_the_same_log_and_keys(reopen: Reopen) -> None:
    first = reopen()
    done = first.log.append([first.entry(patient="p1") for _ in range(300)])
    old = check(first, done)
    second = reopen()
    assert second.keys.origin == first.keys.origin
    assert second.signer.vkey == first.signer.vkey
    assert second.log.head == (300, done.checkpoint)
    (place,) = placed(grown := second.log.append([second.entry(patient="p1")]))
    new = check(second, grown)
    assert place.index == 300
    proof = split_hashes(second.log.consistency(300, 301))
    verify_consistency(300, 301, proof, old.root, new.root)
    # Pseudonyms stay, and entries of the segment before the restart open.
    assert len(second.query(patient=second.index.pseudonym("p1"), limit=999)) == 301
    first_leaf = second.store.leaves(0, 1)[0]
    assert second.segments.open(first_leaf[:PREFIX_SIZE], parse_leaf(first_leaf).sealed)


def test_a_changed_entry_stops_the_start(reopen: Reopen, tmp_path: Path) -> None:
    suite = reopen()
    suite.log.append([suite.entry() for _ in range(9)])
    flip(tmp_path / "audit" / "log.entries", 1000)
    with pytest.raises(StartupError, match="was changed"):
        reopen()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE mark SET size = 8",
        "UPDATE mark SET size = 10",
        "UPDATE mark SET at = at + 1",
        "UPDATE mark SET root = zeroblob(32)",
        "UPDATE mark SET identity = zeroblob(16)",
        "DELETE FROM mark",
        "DELETE FROM places",
        "UPDATE places SET at = at + 1",
        "DELETE FROM meta WHERE name = 'signing/sealed'",
        "DELETE FROM meta WHERE name = 'origin'",
    ],
)
def test_a_damaged_store_stops_the_start(reopen: Reopen, tmp_path: Path, statement: str) -> None:
    suite = reopen()
    for _ in range(9):
        suite.log.append([suite.entry()])
    suite.close()
    with sqlite3.connect(tmp_path / "audit" / "log.db") as db:
        db.execute(statement)
    db.close()
    with pytest.raises(StartupError):
        reopen()


def test_changed_hashes_prove_nothing(suite: Suite, tmp_path: Path) -> None:
    candidates = [suite.entry() for _ in range(300)]
    suite.log.append(candidates)
    suite.log._tree._cache.clear()
    entries = tmp_path / "audit" / "log.entries"
    ((at, head),) = records(entries)
    with entries.open("r+b") as file:
        file.seek(at + head.hashes)
        file.write(bytes(300 * 32))
    with pytest.raises(StoreBrokenError):
        suite.log.receipt(candidates[7].key.event_id)
    with pytest.raises(StoreBrokenError):
        suite.log.consistency(7, 300)
    suite.log.receipt(candidates[299].key.event_id)


@pytest.mark.parametrize("age", [as_version_1, as_version_3])
def test_a_store_of_an_earlier_version_is_taken_over(
    reopen: Reopen, tmp_path: Path, age: Callable[[Path], None]
) -> None:
    suite = reopen()
    bodies = [entry_bytes(patient="p1") for _ in range(20)]
    candidates = [suite.maker.appended(body, GATEWAY) for body in bodies]
    suite.log.append(candidates)
    suite.indexer.wait(20)
    leaves, before, head = suite.store.leaves(0, 20), suite.rows.digest(), suite.log.head
    suite.close()
    age(tmp_path / "audit")
    (tmp_path / "audit" / "index.db").unlink()
    again = reopen()
    assert again.log.head == head
    assert again.store.leaves(0, 20) == leaves
    again.indexer.wait(20)
    assert again.rows.digest() == before
    done = again.log.append([again.maker.appended(bodies[3], GATEWAY), again.entry()])
    assert [(p.index, p.repeated) for p in placed(done)] == [(3, True), (20, False)]
    assert {p.name for p in again.folder.iterdir()} == FILES


class Failing:
    """Stands before a store and fails its commits as told."""

    def __init__(self, suite: Suite, error: Exception) -> None:
        self.error: Exception | None = error
        self.seen: list[Head] = []
        inner = suite.store.commit

        def commit(first: int, leaves: object, hashes: object, keys: object, head: Head) -> None:
            if self.error is not None:
                raise self.error
            self.seen.append(head)
            inner(first, leaves, hashes, keys, head)  # type: ignore[arg-type]

        suite.store.commit = commit  # type: ignore[method-assign,assignment]


def test_a_full_disk_refuses_and_leaves_no_trace(suite: Suite) -> None:
    suite.log.append([suite.entry()])
    before = suite.log.head
    failing = Failing(suite, StoreFullError())
    one = suite.entry()
    for _ in range(2):
        with pytest.raises(SealwardError) as caught:
            suite.log.append([one])
        assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
        assert caught.value.retry_after
    assert suite.log.head == before
    assert suite.full == [True]
    failing.error = None
    done = suite.log.append([one])
    assert check(suite, done).size == 2
    assert suite.full == [True, False]


def test_a_failed_disk_is_never_tried_again(suite: Suite) -> None:
    suite.log.append([suite.entry()])
    failing = Failing(suite, StoreBrokenError("the audit store failed (SQLITE_IOERR_FSYNC)"))
    with pytest.raises(SealwardError):
        suite.log.append([suite.entry()])
    failing.error = None
    with pytest.raises(SealwardError):
        suite.log.append([suite.entry()])
    assert failing.seen == []
    assert len(suite.broken) == 1


def test_without_keys_nothing_is_recorded_until_they_are_back(suite: Suite, ring: Ring) -> None:
    suite.log.append([suite.entry()])
    one = suite.entry()
    ring.down = True
    with pytest.raises(SealwardError) as caught:
        suite.log.append([one])
    assert caught.value.reason is Reason.KEYS_UNAVAILABLE
    ring.down = False
    assert check(suite, suite.log.append([one])).size == 2


def test_segments_end_after_their_entries(reopen: Reopen, ring: Ring) -> None:
    suite = reopen()
    suite.segments._entries = 10
    for _ in range(5):
        suite.log.append([suite.entry() for _ in range(4)])
    leaves = suite.store.leaves(0, 20)
    segments = [parse_leaf(leaf).sealed[:8] for leaf in leaves]
    assert [segments.count(s) for s in dict.fromkeys(segments)] == [8, 8, 4]
    for leaf in leaves:
        assert suite.segments.open(leaf[:PREFIX_SIZE], parse_leaf(leaf).sealed)


def test_receipt_by_event_id(suite: Suite) -> None:
    candidates = [suite.entry() for _ in range(20)]
    suite.log.append(candidates)
    place, checkpoint = suite.log.receipt(candidates[7].key.event_id)
    assert place.index == 7
    check(suite, Committed([place], checkpoint))
    with pytest.raises(SealwardError) as caught:
        suite.log.receipt(new_event_id())
    assert caught.value.reason is Reason.NOT_FOUND


def test_consistency_beyond_the_log_is_refused(suite: Suite) -> None:
    suite.log.append([suite.entry()])
    for old, new in ((0, 2), (1, 0), (2, 2)):
        with pytest.raises(SealwardError):
            suite.log.consistency(old, new)


def test_queries(suite: Suite) -> None:
    def entry(user: str, model: str, outcome: str, patient: str, at: int, kind: str) -> None:
        span = span_bytes(
            kind, outcome, start=at, extra={"sealward.actor.id": user, "sealward.model.name": model}
        )
        suite.log.append([suite.entry(span=span, patient=patient)])

    entry("anna", "m1", "ok", "p1", 100, "inference.predict")
    entry("bert", "m1", "denied", "p2", 200, "inference.predict")
    entry("anna", "m2", "ok", "", 300, "session.login")
    entry("anna", "", "failed", "p1", 400, "session.logout")

    def found(**query: object) -> list[int]:
        return [index for index, _ in suite.query(**query)]

    assert found() == [3, 2, 1, 0]
    assert found(user="anna") == [3, 2, 0]
    assert found(patient=suite.index.pseudonym("p1")) == [3, 0]
    assert found(model="m1") == [1, 0]
    assert found(outcome="denied") == [1]
    assert found(type="session.") == [3, 2]
    assert found(type="session.login") == [2]
    assert found(since=200, until=400) == [2, 1]
    assert found(before_index=2) == [1, 0]
    assert found(limit=1) == [3]
    assert found(user="anna", outcome="ok", model="m1") == [0]
    row = suite.rows.row(1)
    assert row is not None
    assert row.actor == "bert"
    for column, value in (("patient", "x"), ("actor", "x"), ("model", "x")):
        plan = suite.rows._read(
            f"EXPLAIN QUERY PLAN SELECT idx FROM events WHERE {column} = ? AND {column} != ''"  # noqa: S608
            " ORDER BY idx DESC LIMIT 5",
            (value,),
        )
        assert f"events_by_{column}" in plan[0][3]
        assert len(plan) == 1  # no sorting step


def test_the_store_file_is_private(suite: Suite) -> None:
    suite.log.append([suite.entry()])
    folder = suite.folder
    assert {p.name for p in folder.iterdir()} == FILES
    assert all(p.stat().st_mode & 0o077 == 0 for p in (folder, *folder.iterdir()))


def test_maintenance_empties_the_write_ahead_log(suite: Suite) -> None:
    wal = suite.folder / "log.db-wal"
    while wal.stat().st_size < 5 << 20:
        suite.store.put([("test/value", bytes(1 << 20))])
    before = wal.stat().st_size
    suite.store.maintain()
    suite.store.put([("test/value", b"1")])
    suite.store.put([("test/value", b"2")])
    # The log starts from its beginning again instead of growing.
    assert wal.stat().st_size == before
    assert suite.store.get("test/value") == b"2"


@pytest.mark.parametrize("data", [b"", b"MRN-1", bytes(32), b"x" * 1000])
def test_pseudonyms_are_hmac_sha256(data: bytes) -> None:
    key = b"k" * 32
    assert Hmac(key).digest(data) == hmac.digest(key, data, "sha256")
    assert Hmac(key).digest(data) != Hmac(b"j" * 32).digest(data)
