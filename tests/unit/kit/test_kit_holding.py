"""How a holder's wrapped keys move on: batches, progress, failures, what is confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from sealward.api.common.v1 import holder_pb2
from sealward.kit.errors import SealwardError
from sealward.kit.holding import BATCH, Rewrap, WrappedKey, changed
from sealward.kit.keysclient import KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from tests.support.local_keys import LocalKeys, context_as, versions

WHO = "service/inference"


class Shelf:
    """A Holder in memory: wrapped keys by place."""

    def __init__(self, keys: LocalKeys) -> None:
        self.keys = keys
        self.kept: dict[str, WrappedKey] = {}
        self.calls: list[int] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def make(self, number: int, purpose: str = "model") -> None:
        context = EncryptionContext("default", purpose, f"m@{number}")
        _, wrapped = self.keys.provider.create(context)
        self.kept[context.resource] = WrappedKey(context, wrapped)

    def places(self, tenant: str, purpose: str) -> Sequence[str]:
        return [
            place
            for place, key in self.kept.items()
            if (key.context.tenant, key.context.purpose) == (tenant, purpose)
        ]

    def rewrap(self, places: Sequence[str], rewrap: Rewrap) -> tuple[int, list[str]]:
        there = [place for place in places if place in self.kept]
        self.calls.append(len(there))
        new, failed = changed([self.kept[place] for place in there], there, rewrap)
        for place, wrapped in new:
            self.kept[place] = WrappedKey(self.kept[place].context, wrapped)
        self.meanwhile()
        return len(new), failed


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[LocalKeys]:
    made = LocalKeys(tmp_path / "keys")
    yield made
    made.close()


@pytest.fixture
def shelf(keys: LocalKeys) -> Shelf:
    return Shelf(keys)


def under(shelf: Shelf) -> set[int]:
    return versions(shelf.keys, [key.wrapped for key in shelf.kept.values()])


def test_everything_moves_on_in_batches_and_progress_is_told(keys: LocalKeys, shelf: Shelf) -> None:
    for number in range(2 * BATCH + 7):
        shelf.make(number)
    keys.rotate()
    asked = keys.holder(shelf, WHO).Rewrap(holder_pb2.RewrapRequest(), context_as(WHO))
    answers = list(asked)
    assert not answers[0].purpose
    assert [(a.seen, a.total, a.done) for a in answers[1:]] == [
        (BATCH, 2 * BATCH + 7, False),
        (2 * BATCH, 2 * BATCH + 7, False),
        (2 * BATCH + 7, 2 * BATCH + 7, True),
    ]
    assert answers[-1].moved == 2 * BATCH + 7
    assert answers[-1].confirmed
    assert shelf.calls == [BATCH, BATCH, 7]
    assert under(shelf) == {2}
    keys.retire()
    for key in shelf.kept.values():
        assert keys.provider.open(key.context, key.wrapped)


def test_a_second_pass_changes_nothing(keys: LocalKeys, shelf: Shelf) -> None:
    shelf.make(1)
    keys.rotate()
    keys.move(shelf, WHO)
    before = dict(shelf.kept)
    assert keys.move(shelf, WHO)["default/model"].moved == 0
    assert shelf.kept == before


def _flipped(wrapped: bytes) -> bytes:
    return wrapped[:-1] + bytes([wrapped[-1] ^ 1])


def test_what_does_not_open_is_named_and_nothing_is_confirmed(
    keys: LocalKeys, shelf: Shelf
) -> None:
    for number in range(30):
        shelf.make(number)
    for number in range(5, 30):
        broken = shelf.kept[f"m@{number}"]
        shelf.kept[f"m@{number}"] = WrappedKey(broken.context, _flipped(broken.wrapped))
    keys.rotate()
    (last,) = keys.move(shelf, WHO).values()
    assert (last.moved, last.failures, last.confirmed) == (5, 25, False)
    assert list(last.failed) == [f"m@{number}" for number in range(5, 25)]
    with pytest.raises(SealwardError) as caught:
        keys.retire()
    assert caught.value.reason is Reason.KEY_IN_USE
    for number in range(5, 30):
        del shelf.kept[f"m@{number}"]
    assert keys.move(shelf, WHO)["default/model"].confirmed
    keys.retire()


def test_what_appears_at_another_place_meanwhile_is_found(keys: LocalKeys, shelf: Shelf) -> None:
    """A key that is copied while the pass is under way must not stay behind."""
    shelf.make(1)
    old = shelf.kept["m@1"]
    keys.rotate()

    def copy() -> None:
        shelf.kept.setdefault("copy", old)

    shelf.meanwhile = copy
    assert keys.move(shelf, WHO)["default/model"].total == 2
    assert under(shelf) == {2}


def test_only_what_was_asked_for_moves(keys: LocalKeys, shelf: Shelf) -> None:
    shelf.make(1)
    shelf.make(2, "job")
    keys.rotate()
    request = holder_pb2.RewrapRequest(purpose="job")
    answers = list(keys.holder(shelf, WHO).Rewrap(request, context_as(WHO)))
    assert {a.purpose for a in answers if a.done} == {"job"}
    assert versions(keys, [shelf.kept["m@1"].wrapped]) == {1}
    assert versions(keys, [shelf.kept["m@2"].wrapped]) == {2}


def test_cut_off_anywhere_it_goes_on_where_it_was(keys: LocalKeys, shelf: Shelf) -> None:
    """Keys is gone before each call in turn; the next pass completes it."""
    for number in range(BATCH + 1):
        shelf.make(number)
    for step in range(20):
        keys.rotate()
        start = keys.calls
        real = keys._answer

        def gone(limit: int = start + step, real: Callable[[], None] = real) -> None:
            if keys.calls >= limit:
                raise SealwardError(Reason.KEYS_UNAVAILABLE, "gone")
            real()

        keys._answer = gone  # type: ignore[method-assign]
        try:
            done = bool(keys.move(shelf, WHO))
        except SealwardError:
            done = False
        keys._answer = real  # type: ignore[method-assign]
        keys.restart()
        if done:
            break
        assert keys.move(shelf, WHO)["default/model"].confirmed
        keys.retire()
        for key in shelf.kept.values():
            assert keys.provider.open(key.context, key.wrapped)
    else:
        raise AssertionError("it never came to its end")
    assert step > 3


def test_a_leased_key_is_renewed_with_its_new_form(keys: LocalKeys, shelf: Shelf) -> None:
    """What a ring holds lives on after the version that it was wrapped under is destroyed."""
    context = EncryptionContext("default", "model", "m@1")
    ring = KeyRing(keys)
    try:
        held = ring.create(context)
        old = held.wrapped
        keys.rotate()
        (new,) = keys.provider.rewrap([(context, old)])
        assert new is not None
        # One that is read before and opened a moment later has the new form too.
        ring.moved(old, new)
        late = ring.open(context, old)
        assert held.wrapped == late.wrapped == new
        keys.provider.retire("default", "model", 2)
        for branch in (held, late):
            ring._renew(branch)
            assert branch.use()
    finally:
        ring.close()


def test_a_ring_asks_for_the_form_that_others_keep(keys: LocalKeys) -> None:
    """Another process has moved the key on: one question to where it is kept, no outage."""
    context = EncryptionContext("default", "session", "gateway")
    ring = KeyRing(keys)
    try:
        shelf: dict[str, bytes] = {}
        held = ring.create(context, kept=lambda: shelf.get("key"))
        without = ring.create(context)
        keys.rotate()
        (new,) = keys.provider.rewrap([(context, held.wrapped)])
        assert new is not None
        shelf["key"] = new
        keys.provider.retire("default", "session", 2)
        ring._renew(held)
        assert held.use()
        ring._renew(held)
        assert held.failures == 0
        ring._renew(without)
        with pytest.raises(SealwardError):
            without.use()
    finally:
        ring.close()
