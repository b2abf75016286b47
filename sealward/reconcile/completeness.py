"""What the log lacks by what it has: holes in numbers, answers without spans, and doubles.

Each producer numbers its events from 1, anew in each run of it, and each caller its calls in a
session. A number that is not there between two that are is an event that is not in the log. How
much a run or a session had after its last number nobody can tell from the log: the other party's
list can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sealward.reconcile.report import Report, Window, event_name, instant
from sealward.reconcile.trail import LOGIN, PREDICTION, SERVICES, Trail

_INFERENCE = "inference"
# A session counts as numbered one by one when its numbers reach no further than this.
_SPARSE_FACTOR, _SPARSE_SLACK = 2, 1000
# `edge` is the number before, `edge_time` its event's start; none for the first.
_STEPS = """
SELECT * FROM (
  SELECT {group} AS owner, {number} AS number, time, event, log, idx,
    LAG({number}) OVER w AS edge, LAG(time) OVER w AS edge_time
  FROM rows WHERE {group} > 0 AND {number} > 0
  WINDOW w AS (PARTITION BY {group} ORDER BY {number}, log, idx)
) WHERE edge IS NULL AND number > 1 OR number = edge OR number > edge + 1
"""
_OWED = """
SELECT event, time, log, idx, trace FROM rows AS answer
WHERE type = ? AND outcome = ? AND producer = ? AND parent != x'' AND NOT EXISTS (
  SELECT 1 FROM rows AS child
  WHERE child.parent = answer.span AND child.trace = answer.trace AND child.producer = ?
)
"""
_ORPHANS = """
SELECT event, time, log, idx, trace, producer FROM rows AS child
WHERE parent != x'' AND producer IN (?, ?, ?) AND NOT EXISTS (
  SELECT 1 FROM rows AS root
  WHERE root.span = child.parent AND root.trace = child.trace AND root.producer IN (?, ?, ?, ?)
)
"""

Spools = Mapping[str, int | None]
"""By producer: when its oldest waiting span began (nanoseconds); None = it does not say."""


def check(trail: Trail, report: Report, window: Window, spools: Spools) -> None:
    """Find what is missing in the rows of a trail."""
    if not window.session:
        _numbers(trail, report, window, spools)
        _events(trail, report, window)
        _roots(trail, report, window)
    _calls(trail, report, window)
    _spans(trail, report, window, spools)


def runs(trail: Trail) -> Iterator[dict[str, Any]]:
    """Yield the runs of producers: their lowest and highest number, and how many there are."""
    for run, first, last, count, begin, end in trail.ask(
        "SELECT run, min(seq), max(seq), count(*), min(time), max(time) FROM rows"
        " WHERE run > 0 GROUP BY run ORDER BY min(time)"
    ):
        producer, _, instance = trail.text(run).rpartition("/")
        yield {
            "producer": producer,
            "instance": instance,
            "first": first,
            "last": last,
            "events": count,
            "begin": instant(begin),
            "end": instant(end),
        }


def _numbers(trail: Trail, report: Report, window: Window, spools: Spools) -> None:
    for step in trail.ask(_STEPS.format(group="run", number="seq")):
        run, number, time, event, log, index, edge, edge_time = step
        if not _judged(window, edge_time, time):
            continue
        producer, _, instance = trail.text(run).rpartition("/")
        named: dict[str, Any] = {"producer": producer, "instance": instance}
        if number == edge:
            report.add("double-number", **named, number=number, **_place(trail, event, log, index))
            continue
        if edge is None and run in trail.heard:
            continue
        first = (edge or 0) + 1
        hole = {
            **named, **_hole(first, number - 1, edge_time, time),
            "recorded": _gaps(trail, run, first, number - 1),
        }  # fmt: skip
        if window.young(time) or _spooled(spools, producer, time):
            report.add("not-yet", number - first, what="number", **hole)
        else:
            report.add("number", number - first, **hole)


def _calls(trail: Trail, report: Report, window: Window) -> None:
    sparse = set()
    for session, count, low, high in trail.ask(
        "SELECT session, count(DISTINCT caller), min(caller), max(caller) FROM rows"
        " WHERE session > 0 AND caller > 0 GROUP BY session"
    ):
        if high - low >= _SPARSE_FACTOR * count + _SPARSE_SLACK:
            sparse.add(session)
            report.add("sparse", session=trail.text(session), calls=count)
    login = trail.name(LOGIN)
    for step in trail.ask(_STEPS.format(group="session", number="caller")):
        session, number, time, event, log, index, edge, edge_time = step
        name = trail.text(session)
        if not _judged(window, edge_time, time) or (window.session and name != window.session):
            continue
        if number == edge:
            place = _place(trail, event, log, index)
            report.add("double-call", session=name, number=number, **place)
        elif session not in sparse and (edge is not None or _whole(trail, window, session, login)):
            for first, last in _unlisted(trail, session, (edge or 0) + 1, number - 1):
                hole = _hole(first, last, edge_time, time)
                if window.young(time):
                    report.add("not-yet", last - first + 1, what="call", session=name, **hole)
                else:
                    report.add("call", last - first + 1, session=name, **hole)


def _unlisted(trail: Trail, session: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a hole that the caller's own list does not explain.

    What became of the numbers that it has is told where the lists are compared; of numbers that it
    passed over it says that it knows nothing.
    """
    for begin, end in trail.ask(
        "SELECT seq, seq FROM items WHERE session = ?1 AND seq BETWEEN ?2 AND ?3"
        " UNION SELECT first, last FROM passed WHERE session = ?1 AND first <= ?3 AND last >= ?2"
        " ORDER BY 1",
        (session, first, last),
    ):
        if begin > first:
            yield first, begin - 1
        first = max(first, end + 1)
    if first <= last:
        yield first, last


def _spans(trail: Trail, report: Report, window: Window, spools: Spools) -> None:
    name = trail.name
    owed = (name(PREDICTION), name("ok"), name("gateway"), name(_INFERENCE))
    for event, time, log, index, trace in trail.ask(_OWED, owed):
        if not window.has(time) or not _of_session(trail, window, log, index):
            continue
        found: dict[str, Any] = {
            **_place(trail, event, log, index),
            "trace_id": trace.hex(),
            "time": instant(time),
        }
        if window.young(time) or _spooled(spools, _INFERENCE, time):
            report.add("not-yet", what="span", **found)
        else:
            report.add("span", **found, **_unknown(spools, _INFERENCE))


def _roots(trail: Trail, report: Report, window: Window) -> None:
    # The parent of a gateway's span is its caller's, who keeps it.
    ours = [trail.name(producer) for producer in SERVICES]
    for event, time, log, index, trace, producer in trail.ask(_ORPHANS, (*ours[1:], *ours)):
        if window.has(time) and not window.young(time):
            report.add(
                "root", producer=trail.text(producer), **_place(trail, event, log, index),
                trace_id=trace.hex(), time=instant(time),
            )  # fmt: skip
    for span, trace, count, time in trail.ask(
        "SELECT span, trace, count(*), max(time) FROM rows WHERE span != x''"
        " GROUP BY span, trace, producer HAVING count(*) > 1"
    ):
        if window.has(time):
            report.add("double-span", count - 1, span_id=span.hex(), trace_id=trace.hex())


def _events(trail: Trail, report: Report, window: Window) -> None:
    for event, count, time in trail.ask(
        "SELECT event, count(*), max(time) FROM rows GROUP BY event HAVING count(*) > 1"
    ):
        if window.has(time):
            report.add("double-event", count - 1, event_id=event_name(event))


def _judged(window: Window, before: int | None, after: int) -> bool:
    """Whether a hole between two moments is one of the time asked for."""
    return after >= window.since and (before or 0) < window.until


def _whole(trail: Trail, window: Window, session: int, login: int) -> bool:
    """Whether a session was read from its first call on."""
    if window.since <= 0:
        return True
    began = "SELECT EXISTS (SELECT 1 FROM rows WHERE session = ? AND type = ?)"
    return bool(trail.one(began, (session, login)))


def _of_session(trail: Trail, window: Window, log: int, index: int) -> bool:
    if not window.session:
        return True
    found = trail.one("SELECT session FROM rows WHERE log = ? AND idx = ?", (log, index))
    return bool(found == trail.name(window.session))


def _gaps(trail: Trail, run: int, first: int, last: int) -> list[str] | None:
    """Return the events that recorded a hole while it was open."""
    found = trail.ask(
        "SELECT event FROM gaps WHERE run = ? AND first <= ? AND last >= ? AND NOT closed LIMIT 10",
        (run, last, first),
    )
    return [event_name(event) for (event,) in found] or None


def _spooled(spools: Spools, producer: str, time: int) -> bool:
    oldest = spools.get(producer)
    return oldest is not None and 0 < oldest <= time


def _unknown(spools: Spools, producer: str) -> dict[str, Any]:
    return {"spool": "unknown"} if spools.get(producer, 0) is None else {}


def _hole(first: int, last: int, after: int | None, before: int) -> dict[str, Any]:
    return {
        "first": first,
        "last": last,
        "count": last - first + 1,
        "after": instant(after or 0),
        "before": instant(before),
    }


def _place(trail: Trail, event: bytes, log: int, index: int) -> dict[str, Any]:
    return {"event_id": event_name(event), "log": trail.logs[log], "log_index": index}
