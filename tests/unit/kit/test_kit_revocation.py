"""The list of revoked certificates as a process holds it."""

from __future__ import annotations

from typing import Any

import pytest

from sealward.kit.identity import Peer, parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.revocation import Revocations

ANN = parse_identity("spiffe://sealward.local/user/ann")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def peer(serial: int) -> Peer:
    return Peer(ANN, bytes(32), "ipv4:127.0.0.1:1", serial=serial)


def reason(revocations: Revocations, serial: int) -> Reason | None:
    problem = revocations.problem(peer(serial))
    return None if problem is None else problem.reason


def test_nobody_is_known_before_the_first_list() -> None:
    revocations = Revocations()
    assert revocations.stale
    assert reason(revocations, 7) is Reason.REVOCATIONS_UNKNOWN
    revocations.learn(0, [])
    assert reason(revocations, 7) is None
    assert not revocations.stale


def test_a_list_replaces_the_one_before() -> None:
    revocations = Revocations()
    revocations.learn(1, [7, 8])
    assert (reason(revocations, 7), reason(revocations, 9)) == (Reason.CERTIFICATE_REVOKED, None)
    revocations.learn(2, [8, 9])
    assert reason(revocations, 7) is None
    assert reason(revocations, 9) is Reason.CERTIFICATE_REVOKED
    assert len(revocations) == 2
    assert 8 in revocations


def test_an_older_list_takes_nothing_back() -> None:
    revocations = Revocations()
    revocations.learn(5, [7])
    revocations.learn(3, [8])
    assert [reason(revocations, serial) for serial in (7, 8)] == [Reason.CERTIFICATE_REVOKED] * 2


def test_it_is_good_for_its_bound_and_no_longer() -> None:
    clock = Clock()
    revocations = Revocations(60.0, clock)
    revocations.learn(1, [7])
    clock.now += 60
    assert reason(revocations, 8) is None
    revocations.confirm(1)
    clock.now += 60.5
    assert reason(revocations, 8) is Reason.REVOCATIONS_UNKNOWN
    # What is known to be revoked is told as such, also then.
    assert reason(revocations, 7) is Reason.CERTIFICATE_REVOKED
    with pytest.raises(ValueError, match="another version"):
        revocations.confirm(2)
    assert reason(revocations, 8) is Reason.REVOCATIONS_UNKNOWN
    assert revocations.age == 60.5


def test_listeners_are_told_once_of_each_change() -> None:
    clock = Clock()
    revocations = Revocations(60.0, clock)
    told: list[Any] = []
    revocations.on_change(lambda: told.append(revocations.version))
    revocations.learn(1, [7])
    revocations.learn(1, [7])
    revocations.confirm(1)
    revocations.tick()
    assert told == [1]
    clock.now += 61
    revocations.tick()
    revocations.tick()
    assert told == [1, 1]
    revocations.learn(2, [7])
    assert told == [1, 1]
    revocations.learn(3, [8])
    assert told == [1, 1, 3]
