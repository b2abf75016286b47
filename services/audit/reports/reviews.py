"""The review of events under break-glass.

A decision is an event of its own (`audit.review`) whose target is `EVENT/VERDICT`. Decisions are
never changed; the newest counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.audit.reports.found import Found

VERDICTS = ("justified", "not-justified", "escalated")
REVIEW = "audit.review"


@dataclass(frozen=True, slots=True)
class Item:
    """An event and the newest decision about it, if there is one."""

    event: Found
    decision: Found | None

    @property
    def verdict(self) -> str:
        """`justified`, `not-justified`, `escalated`, or empty."""
        return verdict_of(self.decision) if self.decision else ""


def target(event_id: bytes, verdict: str) -> str:
    """Return the target of a decision."""
    return f"{event_id.hex()}/{verdict}"


def verdict_of(decision: Found) -> str:
    """Return the verdict of a decision."""
    return decision.row.target.rpartition("/")[2]


def queue(
    events: Iterable[Found], decisions: Iterable[Found], *, decided: bool
) -> tuple[list[Item], int]:
    """Return the items, oldest first, and how many wait; with `decided` also those that do not."""
    newest: dict[str, Found] = {}
    for decision in decisions:
        event_id, _, verdict = decision.row.target.rpartition("/")
        valid = decision.row.type == REVIEW and decision.row.outcome == "ok"
        if not valid or verdict not in VERDICTS:
            continue
        known = newest.get(event_id)
        if known is None or decision.row.time >= known.row.time:
            newest[event_id] = decision
    items = [
        Item(event, newest.get(event.row.event_id.hex()))
        for event in events
        if event.row.break_glass and event.row.type != REVIEW
    ]
    # An escalated event still waits for its answer.
    waiting = [item for item in items if item.verdict in ("", "escalated")]
    chosen = items if decided else waiting
    return sorted(chosen, key=lambda item: item.event.row.time), len(waiting)
