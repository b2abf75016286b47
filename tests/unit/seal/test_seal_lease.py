"""Leases end at each of their bounds."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

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


@pytest.mark.parametrize(
    ("use", "later", "bound"),
    [
        ({}, 900, "time"),
        ({"messages": 9}, 0, "messages"),
        ({"size": 801}, 0, "bytes"),
        ({"size": 801, "messages": 9}, 0, "messages"),
    ],
)
def test_a_refusal_names_its_bound(use: dict[str, int], later: float, bound: str) -> None:
    clock = Clock()
    key = leased(clock)
    clock.now += later
    with pytest.raises(LeaseExpiredError) as caught:
        key.use(**use)
    assert caught.value.bound == bound


class Hesitant(int):
    """Lets another thread run between a comparison and what follows from it."""

    def __gt__(self, other: int) -> bool:
        found = int(self) > other
        time.sleep(0)
        return found


@pytest.mark.parametrize("counted", ["messages", "size"])
def test_bounds_hold_whatever_uses_it_at_once(counted: str) -> None:
    """Eight threads take what there is: never more than the lease allows, and all of it."""
    key = leased(Clock(), max_messages=2000, max_bytes=2000)
    one = Hesitant(1)
    use = {"messages": one, "size": 0} if counted == "messages" else {"messages": 0, "size": one}
    taken: list[int] = []
    together = threading.Barrier(8)

    def take() -> None:
        mine = 0
        together.wait(10)
        with suppress(LeaseExpiredError):
            while key.use(**use) == KEY:
                mine += 1
        taken.append(mine)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == 8
    assert sum(taken) == 2000


def test_no_thread_gets_a_key_that_another_has_seen_expire() -> None:
    """The clock runs out while eight threads use the key: after a refusal nobody is served."""
    started = threading.Barrier(8)
    over = threading.Event()
    served_after: list[bool] = []
    bounds: set[str] = set()

    class Ticking(Clock):
        def __call__(self) -> float:
            self.now += 0.01
            return self.now

    key = leased(Ticking(), hard_seconds=320, max_messages=1 << 40)

    def take() -> None:
        started.wait(10)
        while True:
            seen = over.is_set()
            try:
                key.use()
            except LeaseExpiredError as error:
                bounds.add(error.bound)
                over.set()
                return
            served_after.append(seen)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert bounds == {"time"}
    assert not any(served_after)
    assert not key.live


def test_forget() -> None:
    key = leased(Clock())
    key.forget()
    assert not live(key)
    assert due(key)
    with pytest.raises(LeaseExpiredError) as caught:
        key.use()
    assert caught.value.bound == "forgotten"


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
