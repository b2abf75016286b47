"""The log against the other party's list: what one side has and the other has not.

A call is the same on both sides by its event id, and by session and the caller's own number. What
the list says was answered has to be in the log; what the log has of a session, or of the time and
user asked for, has to be in the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sealward.kit.calllist import NO_ANSWER, UNTRUSTED
from sealward.reconcile.report import Report, Window, event_name, event_time, instant
from sealward.reconcile.trail import PREDICTION, Trail

# One row a call: its end where the list has one, else where it was sent.
_THEIRS = f"""
CREATE TABLE theirs AS
SELECT file, line, event, session, seq, outcome, at, log, idx,
  NOT sent AND outcome != '{NO_ANSWER}' AS answered
FROM (
  SELECT *, row_number() OVER (PARTITION BY session, seq ORDER BY sent, file, line) AS place
  FROM items WHERE seq > 0
) WHERE place = 1
UNION ALL
SELECT min(file), line, event, session, 0, outcome, at, log, idx, 1
FROM items WHERE seq = 0 GROUP BY event, session;
CREATE INDEX theirs_by_event ON theirs (event);
CREATE INDEX theirs_by_call ON theirs (session, seq);
"""  # noqa: S608
# A label that the log does not know (the client did not know the session's id, or the list has
# names of its own) is the session that its events are in, when they are all in one.
_ALIASES = """
SELECT items.session, min(rows.session) FROM items JOIN rows ON rows.event = items.event
WHERE items.event != x'' AND items.session > 0 AND rows.session > 0
  AND NOT EXISTS (SELECT 1 FROM rows AS own WHERE own.session = items.session)
GROUP BY items.session HAVING count(DISTINCT rows.session) = 1
"""
_DOUBLES = """
SELECT session, seq, min(file), max(line), count(DISTINCT event) FROM items
WHERE seq > 0 AND (event != x'' OR sent) GROUP BY session, seq, sent
HAVING count(DISTINCT event) > 1 OR sent AND count(DISTINCT at) > 1
"""
_MISSING = """
SELECT file, line, event, session, seq, outcome, at, answered FROM theirs
WHERE CASE WHEN event != x'' THEN NOT EXISTS (SELECT 1 FROM rows WHERE rows.event = theirs.event)
  ELSE NOT EXISTS (
    SELECT 1 FROM rows WHERE rows.session = theirs.session AND rows.caller = theirs.seq)
  END
"""
_SAME_EVENT = """
SELECT theirs.file, theirs.line, theirs.event, theirs.session, theirs.seq, theirs.outcome,
  theirs.idx, theirs.log, rows.session, rows.caller, rows.outcome, rows.idx, rows.log, rows.time
FROM theirs CROSS JOIN rows ON rows.event = theirs.event WHERE theirs.event != x''
"""
_SAME_CALL = """
SELECT theirs.file, theirs.line, theirs.session, theirs.seq, theirs.outcome,
  rows.event, rows.outcome, rows.log, rows.idx, rows.time
FROM theirs CROSS JOIN rows ON rows.session = theirs.session AND rows.caller = theirs.seq
WHERE theirs.seq > 0 AND theirs.event = x'' AND (NOT theirs.answered OR theirs.outcome = ?)
"""
_PASSED = "SELECT EXISTS (SELECT 1 FROM passed WHERE session = ? AND ? BETWEEN first AND last)"
_SESSIONS = """
CREATE TABLE scope AS SELECT session, min(seq) AS low, max(seq) AS high
  FROM items WHERE session > 0 AND seq > 0 GROUP BY session;
CREATE UNIQUE INDEX scope_by_session ON scope (session);
"""
_OURS = """
SELECT rows.event, rows.log, rows.idx, rows.time, rows.session, rows.caller, rows.outcome,
  scope.low, scope.high
FROM rows {join} JOIN scope ON scope.session = rows.session
WHERE rows.type = ? AND {where}
  AND NOT EXISTS (SELECT 1 FROM theirs WHERE theirs.event = rows.event)
  AND NOT EXISTS (SELECT 1 FROM theirs WHERE theirs.session = rows.session
    AND theirs.seq = rows.caller AND +rows.caller > 0)
"""


def compare(trail: Trail, report: Report, window: Window) -> None:
    """Compare the rows of a trail with its lists."""
    for number, counts in enumerate(trail.counts):
        for line in counts.malformed:
            report.add("malformed", file=trail.files[number], line=line)
        report.counts["malformed"] += counts.malformed_count - len(counts.malformed)
    for session, seq, file, line, _ in trail.ask(_DOUBLES):
        report.add(
            "double-listed", file=trail.files[file], line=line, session=trail.text(session),
            seq=seq,
        )  # fmt: skip
    trail.db.executescript(_THEIRS + _SESSIONS)
    _only_theirs(trail, report, window)
    _differences(trail, report, window)
    _unfinished(trail, report, window)
    _only_ours(trail, report, window)


def resolve(trail: Trail) -> None:
    """Call the sessions of the lists as the log does, where their events tell which they are."""
    for theirs, ours in list(trail.ask(_ALIASES)):
        for table in ("items", "passed"):
            trail.db.execute(
                f"UPDATE {table} SET session = ? WHERE session = ?",  # noqa: S608
                (ours, theirs),
            )


def _only_theirs(trail: Trail, report: Report, window: Window) -> None:
    for file, line, event, session, seq, outcome, at, answered in trail.ask(_MISSING):
        said = {
            **_listed(trail, file, line, session, seq), "event_id": event_name(event),
            "outcome": outcome, "time": instant(event_time(event) or at),
        }  # fmt: skip
        if _outside(trail, window, session, event_time(event) or at):
            report.add("outside", **said)
            continue
        ours = trail.db.execute(
            "SELECT event, log, idx FROM rows WHERE session = ? AND caller = ? AND caller > 0",
            (session, seq),
        ).fetchone()
        if ours is not None:
            place = {"ours": event_name(ours[0]), "log": trail.logs[ours[1]], "log_index": ours[2]}
            report.add("differs", what="event", **said, **place)
        elif answered:
            report.add("only-theirs", **said)
        else:
            report.add("unanswered", **said)


def _differences(trail: Trail, report: Report, window: Window) -> None:
    for row in trail.ask(_SAME_EVENT):
        file, line, event, session, seq, outcome, index, origin, *ours = row
        our_session, our_seq, our_outcome, our_index, our_log, time = ours
        if _outside(trail, window, our_session, time):
            report.add("outside", **_listed(trail, file, line, session, seq))
            continue
        what: dict[str, tuple[Any, Any]] = {}
        if seq and (session, seq) != (our_session, our_seq):
            what["call"] = (
                f"{trail.text(session)}/{seq}", f"{trail.text(our_session)}/{our_seq}"
            )  # fmt: skip
        if outcome and outcome != trail.text(our_outcome):
            what["outcome"] = (outcome, trail.text(our_outcome))
        if index is not None and origin in ("", trail.logs[our_log]) and index != our_index:
            what["log_index"] = (index, our_index)
        if origin and origin != trail.logs[our_log]:
            what["log"] = (origin, trail.logs[our_log])
        for name, (theirs, mine) in what.items():
            report.add(
                "differs", what=name, **_listed(trail, file, line, session, seq),
                event_id=event_name(event), theirs=theirs, ours=mine,
            )  # fmt: skip


def _unfinished(trail: Trail, report: Report, window: Window) -> None:
    """Calls that both sides have, of which the caller has no answer that it could use."""
    for row in trail.ask(_SAME_CALL, (UNTRUSTED,)):
        file, line, session, seq, outcome, event, our_outcome, log, index, time = row
        said = {
            **_listed(trail, file, line, session, seq), "event_id": event_name(event),
            "log": trail.logs[log], "log_index": index, "outcome": trail.text(our_outcome),
        }  # fmt: skip
        if _outside(trail, window, session, time):
            report.add("outside", **said)
        else:
            report.add("untrusted" if outcome == UNTRUSTED else "not-received", **said)


def _only_ours(trail: Trail, report: Report, window: Window) -> None:
    prediction, answered = trail.name(PREDICTION), trail.name("ok")
    begin, end = trail.db.execute("SELECT min(at), max(at) FROM items WHERE at > 0").fetchone()
    coverage = Coverage(begin, end, trail.first_part)
    asked: list[tuple[str, tuple[int, ...]]] = [
        (_OURS.format(join="", where="TRUE"), (prediction,))
    ]
    rest = "scope.session IS NULL AND rows.asked"
    if window.of_user:
        # The whole user was asked about: what the list's sessions do not have, too.
        asked.append((_OURS.format(join="LEFT", where=rest), (prediction,)))
    elif trail.one("SELECT EXISTS (SELECT 1 FROM theirs WHERE seq = 0)"):
        # A list of bare event ids has what was answered.
        rest += " AND rows.outcome = ?"
        asked.append((_OURS.format(join="LEFT", where=rest), (prediction, answered)))
    for sql, values in asked:
        for event, log, index, time, session, seq, outcome, low, high in trail.ask(sql, values):
            if _outside(trail, window, session, time):
                continue
            numbers = None if low is None else (low, high)
            said: dict[str, Any] = {
                "event_id": event_name(event), "log": trail.logs[log], "log_index": index,
                "session": trail.text(session), "seq": seq or "", "outcome": trail.text(outcome),
                "time": instant(time),
            }  # fmt: skip
            passed = trail.one(_PASSED, (session, seq)) if seq else 0
            report.add(
                "not-listed" if passed else coverage.kind(window, time, seq, numbers), **said
            )


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the lists cover: their first and last moment (None: they have no times)."""

    begin: int | None
    end: int | None
    first_part: bool

    def kind(self, window: Window, time: int, seq: int, numbers: tuple[int, int] | None) -> str:
        """Say what it means that the lists do not have an event.

        `numbers` are the lowest and the highest that they have of its session; None when they have
        none of it.
        """
        low, high = numbers or (0, 0)
        inside = numbers is not None and low <= seq <= high
        if not inside and self.end is not None and time > self.end:
            return "after-list"
        if not inside and not self.first_part and self.begin is not None and time < self.begin:
            return "before-list"
        if self.end is None and window.young(time):
            return "not-yet"
        return "only-ours"


def _outside(trail: Trail, window: Window, session: int, time: int) -> bool:
    if window.session and trail.text(session) != window.session:
        return True
    return bool(time) and not window.has(time)


def _listed(trail: Trail, file: int, line: int, session: int, seq: int) -> dict[str, Any]:
    return {
        "file": trail.files[file], "line": line, "session": trail.text(session), "seq": seq or "",
    }  # fmt: skip
