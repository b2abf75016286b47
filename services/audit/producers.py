"""Gaps in what producers say: a number that never came is an event that is not in the log.

Each producer numbers its events from 1, under an instance that is new when the numbers begin again.
Here every number that was indexed is ticked off. Late ones are normal for a while (a spool that
comes back, streams side by side); a hole that stays open for longer is told once, and told again
when it closes after all. The state is kept with the log, so that a restart goes on where it was.

Times are of the wall clock, because they outlive a restart. A clock that is set back puts nothing
off, one that is set forward tells a hole too early and forgets nobody.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.audit.index import Row

_MOST_HOLES = 1000
_FORGET_SECONDS = 30 * 24 * 3600.0
_MOST_INSTANCES = 256


@dataclass(slots=True)
class Hole:
    """Numbers [first, last] that are missing. `since` is when that was seen, on the clock."""

    first: int
    last: int
    since: float
    told: bool = False

    @property
    def count(self) -> int:
        """How many."""
        return self.last - self.first + 1


@dataclass(slots=True)
class Numbers:
    """What is known of one instance: the highest number, the holes below it, when it last spoke."""

    high: int = 0
    heard: float = 0.0
    holes: list[Hole] = field(default_factory=list)

    def see(self, number: int, now: float) -> Hole | None:
        """Tick off a number. Return the part of a told hole that it closes, if it does."""
        self.heard = now
        if number > self.high:
            if number > self.high + 1:
                self._open(Hole(self.high + 1, number - 1, now))
            self.high = number
            return None
        for at, hole in enumerate(self.holes):
            if hole.first <= number <= hole.last:
                parts = [
                    Hole(first, last, hole.since, hole.told)
                    for first, last in ((hole.first, number - 1), (number + 1, hole.last))
                    if first <= last
                ]
                self.holes[at : at + 1] = parts
                return Hole(number, number, hole.since, told=True) if hole.told else None
        return None

    def _open(self, hole: Hole) -> None:
        self.holes.append(hole)
        if len(self.holes) > _MOST_HOLES:
            # Joined with what lies between: too much is told rather than too little.
            joined = self.holes[:2]
            self.holes[:2] = [
                Hole(joined[0].first, joined[1].last, joined[0].since, joined[0].told)
            ]


@dataclass(frozen=True, slots=True)
class Gap:
    """What is to be recorded: a hole that stays open, or one that has closed after it was told."""

    producer: str
    instance: str
    first: int
    last: int
    closed: bool

    @property
    def count(self) -> int:
        """How many numbers."""
        return self.last - self.first + 1


class Producers:
    """Follows all producers. Thread-safe. `clock` is in seconds since the epoch.

    `steady` says whether the clock can be believed.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        patience: float,
        steady: Callable[[], bool] = lambda: True,
    ) -> None:
        """Tell of a hole after `patience` seconds."""
        self._clock = clock
        self._steady = steady
        self._patience = patience
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Numbers] = {}
        self._positions: dict[str, int] = {}
        self._closed: list[Gap] = []

    def position(self, origin: str) -> int:
        """Return how many entries of a log were seen."""
        return self._positions.get(origin, 0)

    def indexed(self, origin: str, first: int, rows: Sequence[Row | None]) -> None:
        """See the rows of entries [first, first + n) of a log.

        What was seen is skipped. Rows that leave a hole behind what was seen are not taken: whoever
        brings them has to bring the ones before (see `position`).
        """
        now = self._clock()
        with self._lock:
            begin = self._positions.get(origin, 0)
            if first > begin:
                return
            for row in rows[max(0, begin - first) :]:
                if row is not None and row.producer_seq and row.instance:
                    self._see(row, now)
            self._positions[origin] = max(begin, first + len(rows))

    def due(self) -> list[Gap]:
        """Return what has to be recorded now; each hole once, and once more when it closes."""
        now = self._clock()
        gaps = []
        with self._lock:
            gaps, self._closed = _joined(self._closed), []
            for (producer, instance), numbers in self._known.items():
                numbers.heard = min(numbers.heard, now)
                for hole in numbers.holes:
                    # It may have been seen before the clock was set back.
                    hole.since = min(hole.since, now)
                    if not hole.told and now - hole.since >= self._patience:
                        hole.told = True
                        gaps.append(Gap(producer, instance, hole.first, hole.last, closed=False))
            if self._steady():
                self._forget(now)
        return gaps

    def open(self) -> list[Gap]:
        """Return every hole there is, told or not."""
        with self._lock:
            return [
                Gap(producer, instance, hole.first, hole.last, closed=False)
                for (producer, instance), numbers in self._known.items()
                for hole in numbers.holes
            ]

    def missing(self) -> int:
        """Return how many numbers are missing in holes that were told."""
        with self._lock:
            return sum(h.count for n in self._known.values() for h in n.holes if h.told)

    def dump(self) -> bytes:
        """Return the state as JSON."""
        with self._lock:
            state = {
                "positions": self._positions,
                "known": [
                    [*key, n.high, n.heard, [[h.first, h.last, h.since, h.told] for h in n.holes]]
                    for key, n in self._known.items()
                ],
            }
        return json.dumps(state, separators=(",", ":")).encode()

    def load(self, state: bytes) -> None:
        """Take over a state; raise ValueError when it is not one."""
        try:
            parsed: Mapping[str, Any] = json.loads(state)
            positions = {str(k): int(v) for k, v in parsed["positions"].items()}
            known = {
                (str(producer), str(instance)): Numbers(
                    int(high),
                    float(heard),
                    [Hole(int(a), int(b), float(c), bool(d)) for a, b, c, d in holes],
                )
                for producer, instance, high, heard, holes in parsed["known"]
            }
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError("not a state of producers") from error
        with self._lock:
            self._positions, self._known = positions, known

    def _forget(self, now: float) -> None:
        """Forget instances that were followed by others long ago, or by very many.

        The newest of a producer stays, however long it is silent: its next number would look like
        the first of many that are missing. So does one with a hole that was not told yet.
        """
        newest: dict[str, float] = {}
        for (producer, _), numbers in self._known.items():
            newest[producer] = max(newest.get(producer, 0.0), numbers.heard)
        for key, numbers in list(self._known.items()):
            if now - numbers.heard > _FORGET_SECONDS and numbers.heard < newest[key[0]]:
                del self._known[key]
        if len(self._known) > _MOST_INSTANCES:
            self._forget_most()

    def _forget_most(self) -> None:
        """Leave each producer its newest instances: it could name a new one in every span."""
        by_producer: dict[str, list[tuple[str, str]]] = {}
        for key in self._known:
            by_producer.setdefault(key[0], []).append(key)
        for keys in by_producer.values():
            # Of those heard at once the later ones count as newer: sorting keeps their order.
            keys.sort(key=lambda key: self._known[key].heard)
            for key in keys[:-_MOST_INSTANCES]:
                if all(hole.told for hole in self._known[key].holes):
                    del self._known[key]

    def _see(self, row: Row, now: float) -> None:
        key = (row.producer, row.instance)
        numbers = self._known.get(key)
        if numbers is None:
            numbers = self._known[key] = Numbers()
        if row.producer_seq == numbers.high + 1:
            numbers.high, numbers.heard = row.producer_seq, now
            return
        closed = numbers.see(row.producer_seq, now)
        if closed is not None:
            self._closed.append(Gap(*key, closed.first, closed.last, closed=True))


def _joined(gaps: Iterable[Gap]) -> list[Gap]:
    """Join neighbours."""
    joined: list[Gap] = []
    for gap in sorted(gaps, key=lambda g: (g.producer, g.instance, g.first)):
        last = joined[-1] if joined else None
        same = last and (last.producer, last.instance) == (gap.producer, gap.instance)
        if last and same and gap.first <= last.last + 1:
            joined[-1] = Gap(*_key(last), last.first, max(last.last, gap.last), closed=True)
        else:
            joined.append(gap)
    return joined


def _key(gap: Gap) -> tuple[str, str]:
    return gap.producer, gap.instance
