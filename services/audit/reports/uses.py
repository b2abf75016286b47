"""When each actor last did what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.audit.reports.found import Found


class Kind(NamedTuple):
    """Uses that are alike."""

    actor: str
    kind: str
    type: str
    model: str
    purpose: str


def uses(events: Iterable[Found]) -> list[tuple[Kind, tuple[int, int]]]:
    """Return each kind of use with its last time (nanoseconds) and its count, sorted."""
    found: dict[Kind, tuple[int, int]] = {}
    for event in events:
        row = event.row
        if not row.actor:
            continue
        kind = Kind(row.actor, row.actor_kind, row.type, row.model, row.purpose)
        last, count = found.get(kind, (0, 0))
        found[kind] = (max(last, row.time), count + 1)
    return sorted(found.items())
