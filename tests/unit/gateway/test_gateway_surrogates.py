"""Surrogates of projects: drawn, sealed for their place, found again, destroyed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.holding import Holders
from sealward.kit.keysclient import KeyRing
from sealward.kit.reasons import Reason
from services.gateway.factors.store import FactorStore
from services.gateway.surrogates import MOST_ITEMS, Item, Surrogates
from tests.support.key_source import local_ring
from tests.support.local_keys import LocalKeys

ANN = Item("patient", "p1:8c1f00d2", b"\x01" * 16)
BOB = Item("patient", "p1:11aa22bb", b"\x02" * 16)


@pytest.fixture
def ring() -> Iterator[KeyRing]:
    opened = local_ring()
    yield opened
    opened.close()


def test_a_code_is_of_its_project_and_the_same_again(tmp_path: Path, ring: KeyRing) -> None:
    file = tmp_path / "deid.db"
    kept = Surrogates(file, ring)
    ann, bob, again = kept.codes("one", [ANN, BOB, ANN])
    assert ann == again != bob
    assert kept.codes("two", [ANN]) != [ann]
    actor = kept.codes("one", [Item("actor", ANN.identifier, ANN.event_id)])
    assert actor != [ann]
    kept.close()
    opened = Surrogates(file, ring)
    assert opened.codes("one", [ANN]) == [ann]
    assert opened.open("one", ann) == ANN
    assert [(p.name, p.codes) for p in opened.projects()] == [("one", 3), ("two", 1)]
    assert file.stat().st_mode & 0o777 == 0o600
    assert ANN.identifier.encode() not in file.read_bytes()
    opened.close()


def test_the_same_people_have_other_codes_in_another_table(tmp_path: Path, ring: KeyRing) -> None:
    codes = set()
    for name in ("a", "b", "c"):
        kept = Surrogates(tmp_path / name, ring)
        codes.update(kept.codes("one", [ANN, BOB]))
        kept.close()
    assert len(codes) == 6


def test_an_entry_that_was_moved_does_not_open(tmp_path: Path, ring: KeyRing) -> None:
    kept = Surrogates(tmp_path / "deid.db", ring)
    ann, bob = kept.codes("one", [ANN, BOB])
    with sqlite3.connect(tmp_path / "deid.db") as db:
        (sealed,) = db.execute("SELECT sealed FROM surrogate WHERE code = ?", (ann,)).fetchone()
        db.execute("UPDATE surrogate SET sealed = ? WHERE code = ?", (sealed, bob))
    with pytest.raises(SealwardError) as caught:
        kept.open("one", bob)
    assert caught.value.reason is Reason.SEAL_BROKEN
    assert kept.open("one", ann) == ANN
    kept.close()


def test_a_dropped_project_is_gone_and_begins_anew(tmp_path: Path, ring: KeyRing) -> None:
    file = tmp_path / "deid.db"
    kept = Surrogates(file, ring)
    (ann,) = kept.codes("one", [ANN])
    kept.codes("two", [ANN])
    assert kept.drop("one") == 1
    assert ann.encode() not in b"".join(f.read_bytes() for f in tmp_path.glob("deid.db*"))
    for wrong in (lambda: kept.open("one", ann), lambda: kept.drop("one")):
        with pytest.raises(SealwardError) as caught:
            wrong()
        assert caught.value.reason is Reason.NOT_FOUND
    assert [p.name for p in kept.projects()] == ["two"]
    assert kept.codes("one", [ANN]) != [ann]
    kept.close()


@pytest.mark.parametrize(
    ("project", "items"),
    [
        ("", [ANN]), ("One", [ANN]), ("a" * 33, [ANN]), ("a/b", [ANN]),
        ("one", [ANN] * (MOST_ITEMS + 1)), ("one", [Item("mrn", "1", b"\x01" * 16)]),
        ("one", [Item("patient", "", b"\x01" * 16)]), ("one", [Item("patient", "a b", b"1" * 16)]),
        ("one", [Item("patient", "a", b"\x01")]),
    ],
)  # fmt: skip
def test_what_is_no_project_and_no_item_is_refused(
    tmp_path: Path, ring: KeyRing, project: str, items: list[Item]
) -> None:
    kept = Surrogates(tmp_path / "deid.db", ring)
    with pytest.raises(SealwardError) as caught:
        kept.codes(project, items)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert kept.projects() == []
    kept.close()


@pytest.mark.parametrize("code", ["", "zz", "0" * 16, "' OR 1=1 --"])
def test_what_is_no_code_leads_nowhere(tmp_path: Path, ring: KeyRing, code: str) -> None:
    kept = Surrogates(tmp_path / "deid.db", ring)
    kept.codes("one", [ANN])
    with pytest.raises(SealwardError) as caught:
        kept.open("one", code)
    assert caught.value.reason is Reason.NOT_FOUND
    kept.close()


def test_the_key_moves_on(tmp_path: Path, ring: KeyRing) -> None:
    kept = Surrogates(tmp_path / "deid.db", ring)
    assert kept.places("default", "user") == ()
    (ann,) = kept.codes("one", [ANN])
    assert kept.places("default", "user") == ("deid",)
    assert kept.places("default", "session") == ()
    moved, failed = kept.rewrap(("deid",), lambda keys: [key.wrapped for key in keys])
    assert (moved, failed) == (0, [])
    assert kept.open("one", ann) == ANN
    kept.close()


def test_a_rotation_moves_it_beside_the_second_factors(tmp_path: Path) -> None:
    keys = LocalKeys(tmp_path / "keys")
    ring = keys.ring()
    kept, factors = Surrogates(tmp_path / "deid.db", ring), FactorStore(tmp_path / "f.db", ring)
    (ann,) = kept.codes("one", [ANN])
    factors.put_totp("u1", "JBSWY3DPEHPK3PXP")
    keys.rotate()
    done = keys.move(Holders(factors, kept), "service/gateway")["default/user"]
    assert (done.total, done.moved, done.failures, done.confirmed) == (2, 2, 0, True)
    keys.retire()
    for file in (kept, factors):
        # What is in use goes by the new wrapped form: the old one opens nothing any more.
        assert file._branch_key().wrapped == file._wrapped()
    kept.close()
    ring.close()
    ring = keys.ring()
    again = Surrogates(tmp_path / "deid.db", ring)
    assert again.open("one", ann) == ANN
    assert again.codes("one", [ANN]) == [ann]
    for opened in (again, factors, ring, keys):
        opened.close()
