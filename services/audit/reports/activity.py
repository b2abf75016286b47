"""What each user did, or what was done with each model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.audit.reports.found import Found

_HOUR = 3600 * 1_000_000_000
_DAY = 24 * _HOUR
_OUTCOMES = ("ok", "denied", "failed")


@dataclass(slots=True)
class Activity:
    """Counts for one name. Times are nanoseconds since the epoch; days and hours are of UTC."""

    name: str
    first: int
    last: int
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_OUTCOMES, 0))
    patients: set[tuple[str, str]] = field(default_factory=set)
    days: set[int] = field(default_factory=set)
    off_hours: int = 0
    break_glass: int = 0

    @property
    def events(self) -> int:
        """All of them."""
        return sum(self.outcomes.values())


def activity(
    events: Iterable[Found], *, by_model: bool, work_from: int, work_to: int
) -> list[Activity]:
    """Return a row for each user (or model), the busiest first.

    `work_from` and `work_to` are hours of the day; equal ones mean that no hour is off. A pseudonym
    is of one log, so a patient of two logs counts twice.
    """
    rows: dict[str, Activity] = {}
    for found in events:
        row = found.row
        name = row.model if by_model else row.actor
        if not name:
            continue
        entry = rows.get(name)
        if entry is None:
            entry = rows[name] = Activity(name, row.time, row.time)
        entry.first, entry.last = min(entry.first, row.time), max(entry.last, row.time)
        entry.outcomes[row.outcome] += 1
        entry.days.add(row.time // _DAY)
        if row.patient:
            entry.patients.add((found.origin, row.patient))
        entry.break_glass += row.break_glass
        entry.off_hours += not _at_work(row.time % _DAY // _HOUR, work_from, work_to)
    return sorted(rows.values(), key=lambda entry: (-entry.events, entry.name))


def _at_work(hour: int, begin: int, end: int) -> bool:
    if begin == end:
        return True
    if begin < end:
        return begin <= hour < end
    # Over midnight.
    return hour >= begin or hour < end
