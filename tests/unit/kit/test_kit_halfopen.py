"""Calls whose message does not come: whose calls end, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.halfopen import HalfOpen
from sealward.kit.reasons import Reason


class Context:
    """A call without a message, until it is cancelled."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.ended = threading.Event()

    def cancel(self) -> bool:
        self.ended.set()
        return True

    def messages(self) -> Iterator[bytes]:
        if self.ended.wait(20):
            raise ConnectionError
        yield b"late"


class Rig:
    def __init__(self, threads: int) -> None:
        self.now = 0.0
        self.half_open = HalfOpen(threads, lambda context: context.who, lambda: self.now)
        self.held: list[Context] = []

    def hold(self, who: str, count: int) -> list[Context]:
        """Let calls wait for their message; return them once they do."""
        contexts = [Context(who) for _ in range(count)]
        for context in contexts:
            threading.Thread(target=self._wait, args=(context,), daemon=True).start()
        while not set(contexts) <= set(self.half_open._waiting):
            threading.Event().wait(0.001)
        self.held += contexts
        return contexts

    def _wait(self, context: Context) -> None:
        with pytest.raises(ConnectionError):
            self.half_open.first(context.messages(), context)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.half_open.tick()
        for context in self.held:
            while context.ended.is_set() and context in self.half_open._waiting:
                threading.Event().wait(0.001)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(20)
    yield made
    for context in made.held:
        context.cancel()


def ended(contexts: list[Context]) -> int:
    return sum(context.ended.is_set() for context in contexts)


def test_a_message_is_returned_and_none_is_not_an_empty_one(rig: Rig) -> None:
    assert rig.half_open.first(iter([b"one", b"two"]), Context("a")) == b"one"
    assert rig.half_open.first(iter([b""]), Context("a")) == b""
    with pytest.raises(SealwardError) as caught:
        rig.half_open.first(iter([]), Context("a"))
    assert caught.value.reason is Reason.REQUEST_MALFORMED
    assert not rig.half_open._waiting


def test_who_is_slow_is_left_alone_while_there_is_room(rig: Rig) -> None:
    slow = rig.hold("slow", 9)
    rig.pass_(1000)
    assert ended(slow) == 0


def test_a_burst_is_left_alone(rig: Rig) -> None:
    burst = rig.hold("burst", 20)
    rig.pass_(0.9)
    assert ended(burst) == 0


def test_who_holds_the_most_gives_way_and_may_then_hold_a_few(rig: Rig) -> None:
    slow = rig.hold("slow", 4)
    flood = rig.hold("flood", 6)
    rig.pass_(1.0)
    assert (ended(slow), ended(flood)) == (0, 6)
    rig.hold("flood", 4)
    with pytest.raises(SealwardError) as caught:
        rig.half_open.first(iter([b"x"]), Context("flood"))
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.retry_after
    assert rig.half_open.first(iter([b"x"]), Context("slow")) == b"x"
    rig.pass_(61.0)
    assert rig.half_open.first(iter([b"x"]), Context("flood")) == b"x"


def test_several_floods_end_one_after_the_other(rig: Rig) -> None:
    floods = [rig.hold(who, count) for who, count in (("a", 8), ("b", 7), ("c", 5))]
    rig.pass_(1.0)
    rig.pass_(0.25)
    rig.pass_(0.25)
    assert [ended(flood) for flood in floods] == [8, 7, 0]
