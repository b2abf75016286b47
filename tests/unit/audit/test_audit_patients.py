"""A key for each patient: what an entry holds of the reference, and what is left of it."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.spans import attribute
from sealward.seal.context import EncryptionContext
from sealward.tlog.leaf import PREFIX_SIZE
from services.audit import patients as module
from services.audit.entry import EntryMaker
from services.audit.patients import PLACES, Patients, Slot, find, slot_of
from services.audit.store import StoreFullError
from tests.support.audit_suite import Branch, Ring, Suite, open_suite


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    made = open_suite(tmp_path, Ring())
    yield made
    made.close()


def appended(suite: Suite, patient: str) -> bytes:
    """Append an event about a patient; return its leaf."""
    entry = suite.entry(patient=patient)
    done = suite.log.append([entry])
    (leaf,) = suite.store.leaves(done.results[0].index, done.results[0].index + 1)  # type: ignore[union-attr]
    return leaf


def values(suite: Suite, leaf: bytes) -> dict[str, str]:
    span = Span.FromString(suite.segments.open(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:]))
    return {pair.key: pair.value.string_value for pair in span.attributes}


def slot(suite: Suite, leaf: bytes) -> Slot:
    found = find(suite.segments.open_as_it_is(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:]))
    assert found is not None
    return slot_of(found[1])


def destroyed(suite: Suite, patient: str, *leaves: bytes) -> int:
    pseudonym = suite.index.pseudonym(patient)
    return suite.patients.destroy(pseudonym, [slot(suite, leaf) for leaf in leaves],
                                  suite.store.put)  # fmt: skip


def test_the_reference_is_under_a_key_of_its_own(suite: Suite) -> None:
    leaf = appended(suite, "MRN-1")
    inside = suite.segments.open_as_it_is(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:])
    pseudonym = suite.index.pseudonym("MRN-1")
    assert b"MRN-1" not in inside
    assert pseudonym.encode() not in inside
    assert names.PATIENT.encode() + b"\x12" not in inside
    found = values(suite, leaf)
    assert (found[names.PATIENT_REFERENCE], found[names.PATIENT]) == ("MRN-1", pseudonym)
    assert len(suite.query(patient=pseudonym)) == 1


def test_a_patient_has_one_key_and_another_has_another(suite: Suite) -> None:
    one, again, other = (appended(suite, patient) for patient in ("A", "A", "B"))
    assert slot(suite, one) == slot(suite, again) != slot(suite, other)


def test_keys_are_made_in_batches(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one call an append, not one a patient; and the next batch before this one is used up."""
    made: list[str] = []
    put: list[int] = []
    create, real = suite.ring.create, suite.store.put

    def counted(context: EncryptionContext) -> Branch:
        made.append(context.purpose)
        return create(context)

    def counting(values: Iterable[tuple[str, bytes]]) -> None:
        put.append(1)
        real(values)

    monkeypatch.setattr(suite.ring, "create", counted)
    monkeypatch.setattr(suite.store, "put", counting)
    for number in range(2 * PLACES):
        suite.entry(patient=f"P{number}")
        suite.entry(patient=f"P{number}")
    for thread in threading.enumerate():
        if thread.name == "patient-keys":
            thread.join(10)
    assert made.count("audit-patient") in (2, 3)
    assert len(put) == made.count("audit-patient")


def test_what_is_destroyed_opens_no_more_and_the_others_do(suite: Suite) -> None:
    gone = [appended(suite, "GONE"), appended(suite, "GONE")]
    stays = appended(suite, "STAYS")
    root = suite.log.head[1]
    assert destroyed(suite, "GONE", *gone) == 1
    for leaf in gone:
        found = values(suite, leaf)
        assert names.PATIENT_REFERENCE not in found
        assert names.PATIENT not in found
        assert names.PATIENT_DESTROYED in found
        assert found[names.ACTOR_ID]
    assert values(suite, stays)[names.PATIENT_REFERENCE] == "STAYS"
    assert suite.log.head[1] == root
    suite.indexer.rebuild()
    assert suite.query(patient=suite.index.pseudonym("GONE")) == []
    assert len(suite.query(patient=suite.index.pseudonym("STAYS"))) == 1
    # Done again it changes nothing; who comes again is somebody again.
    assert destroyed(suite, "GONE", *gone) == 0
    again = appended(suite, "GONE")
    assert values(suite, again)[names.PATIENT_REFERENCE] == "GONE"
    assert slot(suite, again) != slot(suite, gone[0])


def test_the_key_is_in_no_part_of_the_store(suite: Suite, tmp_path: Path) -> None:
    """Its place is overwritten, and the branch key that copies open under is another one."""
    leaf = appended(suite, "GONE")
    where = slot(suite, leaf)
    before = {name: suite.store.get(name) for name in suite.store.names("patient/")}
    destroyed(suite, "GONE", leaf)
    after = {name: suite.store.get(name) for name in suite.store.names("patient/")}
    assert set(before) == set(after)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {module.wrapped_name(where.pool), module.keys_name(where.pool)}
    suite.patients.close()
    assert names.PATIENT_DESTROYED in values(suite, leaf)


def test_after_a_start_everything_opens_from_the_store(tmp_path: Path) -> None:
    ring = Ring()
    first = open_suite(tmp_path, ring)
    gone, stays = appended(first, "GONE"), appended(first, "STAYS")
    destroyed(first, "GONE", gone)
    first.close()
    second = open_suite(tmp_path, ring)
    assert names.PATIENT_DESTROYED in values(second, gone)
    assert values(second, stays)[names.PATIENT_REFERENCE] == "STAYS"
    fresh = appended(second, "STAYS")
    # Another key of the same patient: destroyed together, by the entries.
    assert slot(second, fresh) != slot(second, stays)
    assert destroyed(second, "STAYS", stays, fresh) == 2
    assert names.PATIENT_DESTROYED in values(second, fresh)
    second.close()


def test_entries_from_before_are_read_as_they_were(suite: Suite) -> None:
    old = EntryMaker(suite.index)
    suite.maker = old
    leaf = appended(suite, "MRN-OLD")
    inside = suite.segments.open_as_it_is(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:])
    assert find(inside) is None
    assert values(suite, leaf)[names.PATIENT_REFERENCE] == "MRN-OLD"
    assert len(suite.query(patient=suite.index.pseudonym("MRN-OLD"))) == 1


def test_a_swapped_or_changed_reference_does_not_open(suite: Suite) -> None:
    one, other = appended(suite, "A"), appended(suite, "A")
    spans = [suite.segments.open_as_it_is(x[:PREFIX_SIZE], x[PREFIX_SIZE:]) for x in (one, other)]
    ids = [leaf[1:17] for leaf in (one, other)]
    assert suite.patients.reveal(ids[0], spans[0])
    changed = bytearray(spans[0])
    changed[-1] ^= 1
    for event_id, span in ((ids[1], spans[0]), (ids[0], bytes(changed))):
        with pytest.raises(SealwardError) as caught:
            suite.patients.reveal(event_id, span)
        assert caught.value.reason is Reason.SEAL_BROKEN


def test_a_failed_write_destroys_nothing(suite: Suite) -> None:
    leaf = appended(suite, "A")

    def full(_values: Sequence[tuple[str, bytes]]) -> None:
        raise SealwardError(Reason.AUDIT_UNAVAILABLE, "full")

    with pytest.raises(SealwardError):
        suite.patients.destroy(suite.index.pseudonym("A"), [slot(suite, leaf)], full)
    assert values(suite, leaf)[names.PATIENT_REFERENCE] == "A"
    assert destroyed(suite, "A", leaf) == 1


def test_many_writers_and_a_destruction_at_once(suite: Suite) -> None:
    """Nobody's append fails, and no two patients ever share a key."""
    stop, problems, leaves = threading.Event(), list[str](), dict[str, list[bytes]]()

    def write(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            patient = f"{name}-{number % 40}"
            try:
                leaves.setdefault(patient, []).append(appended(suite, patient))
            except SealwardError as error:
                problems.append(error.reason.name)

    writers = [threading.Thread(target=write, args=(n,)) for n in "abcd"]
    for writer in writers:
        writer.start()
    try:
        for _ in range(20):
            known = dict(leaves)
            for patient, mine in list(known.items())[:2]:
                destroyed(suite, patient, *list(mine))
    finally:
        stop.set()
        for writer in writers:
            writer.join(30)
    assert problems == []
    owners: dict[Slot, str] = {}
    for patient, mine in leaves.items():
        for leaf in mine:
            assert owners.setdefault(slot(suite, leaf), patient) == patient


@given(st.binary(max_size=300))
def test_only_what_this_service_wrote_is_found(data: bytes) -> None:
    assert find(data) is None or data[find(data)[0]] == 0x4A  # type: ignore[index]
    producer = attribute(names.PRODUCER_ID, "gateway")
    forged = attribute(names.PATIENT_SEALED, secrets.token_bytes(60))
    assert find(data + forged + producer) is None
    found = find(data + producer + forged)
    assert found is not None
    assert found[0] == len(data + producer)


def test_no_reference_is_in_the_files(suite: Suite, tmp_path: Path) -> None:
    appended(suite, "MRN-CANARY-77")
    suite.indexer.wait(suite.log.head[0])
    with sqlite3.connect(f"file:{tmp_path}/log.db?mode=ro", uri=True) as db:
        db.execute("SELECT 1")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"MRN-CANARY-77" not in path.read_bytes()


def test_a_pool_that_is_gone_or_of_another_log_is_broken(suite: Suite, tmp_path: Path) -> None:
    leaf = appended(suite, "A")
    other = Patients(lambda: suite.store, Ring(), "north", lambda: suite.index)
    inside = suite.segments.open_as_it_is(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:])
    for which in (other,):
        with pytest.raises(SealwardError) as caught:
            which.reveal(leaf[1:17], inside)
        assert caught.value.reason is Reason.SEAL_BROKEN
    suite.store.forget("patient/")
    suite.patients.close()
    with pytest.raises(SealwardError) as caught:
        suite.patients.reveal(leaf[1:17], inside)
    assert caught.value.reason is Reason.SEAL_BROKEN


def test_for_a_log_that_has_ended_nothing_is_written_and_nobody_fails(suite: Suite) -> None:
    """What is made while logs turn is made anew for the next one."""
    appended(suite, "A")
    before = suite.store.names("patient/")
    suite.patients.close()
    made = suite.entry(patient="A")
    assert find(made.span) is not None
    assert b"A" not in made.span[-26:]
    assert suite.store.names("patient/") == before


def test_a_store_that_cannot_be_written_is_told_as_such(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_values: Iterable[tuple[str, bytes]]) -> None:
        raise StoreFullError("full")

    monkeypatch.setattr(suite.store, "put", full)
    with pytest.raises(SealwardError) as caught:
        suite.entry(patient="A")
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
