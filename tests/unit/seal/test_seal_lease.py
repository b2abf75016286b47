"""Leases end at each of their bounds."""

from __future__ import annotations

import pytest

from sealward.seal.errors import LeaseExpiredError
from sealward.seal.lease import Lease, LeasedKey

KEY = b"k" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def leased(clock: Clock, **bounds: float) -> LeasedKey:
    values = {"soft_seconds": 300, "hard_seconds": 900, "max_messages": 8, "max_bytes": 800}
    lease = Lease(**{**values, **bounds})  # type: ignore[arg-type]
    return LeasedKey(KEY, lease, clock, clock.now)


def live(key: LeasedKey) -> bool:
    return key.live


def due(key: LeasedKey) -> bool:
    return key.renewal_due


def test_time() -> None:
    clock = Clock()
    key = leased(clock)
    assert key.use() == KEY
    assert not due(key)
    clock.now += 300
    assert due(key)
    clock.now += 599.9
    assert live(key)
    assert key.use() == KEY
    clock.now += 0.1
    assert not live(key)
    with pytest.raises(LeaseExpiredError):
        key.use()
    clock.now -= 500
    with pytest.raises(LeaseExpiredError):
        key.use()


def test_messages() -> None:
    key = leased(Clock())
    assert key.use(messages=5) == KEY
    assert not due(key)
    key.use()
    assert due(key)
    with pytest.raises(LeaseExpiredError):
        key.use(messages=3)
    key.use(messages=2)
    with pytest.raises(LeaseExpiredError):
        key.use()
    assert key.use(messages=0) == KEY


def test_bytes() -> None:
    key = leased(Clock())
    key.use(size=599, messages=1)
    assert not due(key)
    key.use(size=1, messages=1)
    assert due(key)
    with pytest.raises(LeaseExpiredError):
        key.use(size=201)
    key.use(size=200)


def test_a_refused_use_is_not_counted() -> None:
    key = leased(Clock())
    with pytest.raises(LeaseExpiredError):
        key.use(size=801)
    assert key.use(size=800, messages=8) == KEY


def test_forget() -> None:
    key = leased(Clock())
    key.forget()
    assert not live(key)
    assert due(key)
    with pytest.raises(LeaseExpiredError):
        key.use()


@pytest.mark.parametrize(
    "bounds",
    [
        {"soft_seconds": 0},
        {"soft_seconds": 901},
        {"max_messages": 0},
        {"max_bytes": 0},
    ],
)
def test_a_lease_without_room_is_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="lease"):
        leased(Clock(), **bounds)


def test_repr_shows_no_key() -> None:
    assert "kkk" not in repr(leased(Clock()))
