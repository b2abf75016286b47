"""Refusals that came close together: of one actor, or about one patient."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.audit.reports.found import Found

_LOGINS = ("session.login", "session.denied-summary")
_MOST_EVENTS = 100


@dataclass(slots=True)
class Burst:
    """One burst. `by` is `actor` or `patient`."""

    by: str
    who: str
    first: int
    last: int
    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    events: list[Found] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Count one refusal, or all that a summary stands for."""
        row = found.row
        weight = weight_of(found)
        self.last = max(self.last, row.time)
        self.count += weight
        self.reasons[row.reason or row.type] += weight
        if len(self.events) < _MOST_EVENTS:
            self.events.append(found)


def weight_of(found: Found) -> int:
    """Return how many refusals an event stands for: a summary counts those it sums up."""
    row = found.row
    is_summary = row.type == "session.denied-summary" or (
        row.type == "access.denied" and not row.reason
    )
    return max(1, row.counted) if is_summary else 1


def bursts(refusals: Iterable[Found], *, threshold: int, window: int, logins: bool) -> list[Burst]:
    """Return the bursts, the largest first.

    `refusals` come oldest first. A burst goes on while the next refusal is within `window`
    (nanoseconds) of the last, and is one when it has `threshold` within some window.
    """
    watches: dict[tuple[str, str], _Watch] = {}
    for found in refusals:
        row = found.row
        if row.outcome != "denied" or (logins and row.type not in _LOGINS):
            continue
        for by, who in (("actor", row.actor), ("patient", row.patient)):
            if who:
                watch = watches.setdefault((by, who), _Watch(by, who, threshold, window))
                watch.see(found)
    done = [burst for watch in watches.values() for burst in watch.end()]
    return sorted(done, key=lambda burst: (-burst.count, burst.first))


class _Watch:
    """Follows the refusals of one actor or patient."""

    def __init__(self, by: str, who: str, threshold: int, window: int) -> None:
        self._by, self._who = by, who
        self._threshold, self._window = threshold, window
        self._current: Burst | None = None
        self._reached = False
        self._recent: deque[tuple[int, int]] = deque()
        self._weight = 0
        self._done: list[Burst] = []

    def see(self, found: Found) -> None:
        time, weight = found.row.time, weight_of(found)
        if self._current is not None and time - self._current.last > self._window:
            self.end()
        if self._current is None:
            self._current = Burst(self._by, self._who, time, time)
        self._current.add(found)
        self._recent.append((time, weight))
        self._weight += weight
        while time - self._recent[0][0] > self._window:
            self._weight -= self._recent.popleft()[1]
        self._reached = self._reached or self._weight >= self._threshold

    def end(self) -> list[Burst]:
        if self._current is not None and self._reached:
            self._done.append(self._current)
        self._current, self._reached, self._weight = None, False, 0
        self._recent.clear()
        return self._done
