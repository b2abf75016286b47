"""What one side has and the other has not, by event and by number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from sealward.reconcile.items import Found, Heading, Item, Malformed, Other, Passed
from sealward.reconcile.trail import Row
from tests.support.trails import LOG, OTHER, SECOND, SESSION, Log, event_id, found, reconcile


def sdk(rows: Iterable[Row], *extra: Found, part: int = 1) -> list[Found]:
    """The list that a client would have kept of these calls."""
    lines: list[Found] = [Heading(1, "ann", part)]
    for row in rows:
        call = {"session": row.session, "seq": row.caller_seq, "at": row.time_unix_nano}
        lines.append(Item(len(lines) + 1, sent=True, **call))
        lines.append(
            Item(
                len(lines) + 1, row.event_id, outcome=row.outcome, log=LOG,
                log_index=row.log_index, **call,
            )
        )  # fmt: skip
    return [*lines, *extra]


def ids(rows: Iterable[Row]) -> list[Found]:
    return [Item(number, row.event_id) for number, row in enumerate(rows, 1)]


def test_the_same_calls_on_both_sides_are_complete() -> None:
    log = Log()
    rows = log.calls(*range(1, 8))
    report = reconcile(log, sdk(rows))
    assert found(report) == {}
    assert found(reconcile(log, ids(rows))) == {}


def test_what_each_side_lacks_is_named() -> None:
    log = Log()
    rows = log.calls(*range(1, 8))
    theirs = sdk([*rows[:3], *rows[4:]])
    foreign = event_id(log.time)
    theirs.append(Item(99, foreign, SESSION, 8, "ok", log.time))
    report = reconcile(log, theirs)
    assert found(report) == {"only-ours": 1, "only-theirs": 1}
    (ours,) = report.details["only-ours"]
    assert (ours["session"], ours["seq"], ours["log_index"]) == (SESSION, 4, 3)
    (other,) = report.details["only-theirs"]
    assert (other["file"], other["line"], other["seq"]) == ("list-0", 99, 8)
    assert other["event_id"].replace("-", "") == foreign.hex()


def test_an_event_that_the_operator_left_out_is_named_by_the_callers_list() -> None:
    log = Log()
    rows = log.calls(*range(1, 8))
    log.rows = [row._replace(producer_seq=0) for row in rows if row.caller_seq not in (3, 7)]
    # The last one leaves no hole: only the other side's list shows it.
    report = reconcile(log, sdk(rows))
    assert found(report) == {"only-theirs": 2}
    assert [item["seq"] for item in report.details["only-theirs"]] == [3, 7]


def test_calls_without_an_answer_are_no_loss_and_explain_a_hole() -> None:
    log = Log()
    rows = log.calls(1, 2, 5, 6)
    log.rows = [row._replace(producer_seq=0) for row in rows]
    at = log.time
    lost = [
        Item(50, b"", SESSION, 3, "", at, sent=True),
        Item(51, b"", SESSION, 3, "no-answer", at),
        # Its process died.
        Item(52, b"", SESSION, 4, "", at, sent=True),
    ]
    assert found(reconcile(log)) == {"call": 2}
    report = reconcile(log, sdk(rows, *lost))
    assert found(report) == {"unanswered": 2}
    assert report.complete
    assert found(reconcile(log, sdk(rows, *lost[:2]))) == {"unanswered": 1, "call": 1}


def test_an_answer_that_did_not_arrive_is_a_note() -> None:
    log = Log()
    rows = log.calls(1, 2, 3)
    theirs = [item for item in sdk(rows) if not (isinstance(item, Item) and item.seq == 2)]
    theirs.append(Item(9, b"", SESSION, 2, "", log.time, sent=True))
    report = reconcile(log, theirs)
    assert found(report) == {"not-received": 1}
    assert report.details["not-received"][0]["outcome"] == "ok"


def test_an_answer_that_was_not_trusted_has_to_be_in_the_log() -> None:
    log = Log()
    rows = log.calls(1, 2)
    bad = Item(9, b"", SESSION, 2, "untrusted", log.time)
    assert found(reconcile(log, sdk(rows[:1], bad))) == {"untrusted": 1}
    worse = Item(9, b"", SESSION, 3, "untrusted", log.time)
    assert found(reconcile(log, sdk(rows, worse))) == {"only-theirs": 1}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"outcome": "denied"}, "outcome"),
        ({"log_index": 77}, "log_index"),
        ({"log": "sealward.local/2025"}, "log"),
        ({"seq": 9}, "call"),
    ],
)
def test_what_the_two_say_differently_is_named(change: dict[str, Any], what: str) -> None:
    log = Log()
    (row,) = log.calls(1)
    values = {
        "line": 2, "event_id": row.event_id, "session": SESSION, "seq": 1, "outcome": "ok",
        "log": LOG, "log_index": 0, "at": row.time_unix_nano, **change,
    }  # fmt: skip
    report = reconcile(log, [Item(**values)])
    assert report.details["differs"][0]["what"] == what
    assert not report.complete


def test_another_event_under_the_same_number_is_a_difference() -> None:
    log = Log()
    (row,) = log.calls(1)
    report = reconcile(log, [Item(3, event_id(log.time), SESSION, 1, "ok", log.time)])
    assert found(report) == {"differs": 1}
    (difference,) = report.details["differs"]
    assert difference["ours"].replace("-", "") == row.event_id.hex()


def test_a_call_that_is_twice_in_the_list_is_named() -> None:
    log = Log()
    rows = log.calls(1, 2)
    again = Item(9, event_id(log.time), SESSION, 2, "ok", log.time)
    assert found(reconcile(log, sdk(rows, again)))["double-listed"] == 1
    twice_sent = Item(9, b"", SESSION, 2, "", log.time + 5, sent=True)
    assert found(reconcile(log, sdk(rows, twice_sent))) == {"double-listed": 1}
    # The same list given twice is only that.
    assert found(reconcile(log, sdk(rows), sdk(rows))) == {}


def test_what_came_after_the_list_was_copied_is_a_note() -> None:
    log = Log()
    rows = log.calls(1, 2, 3)
    log.calls(1, session=OTHER)
    assert found(reconcile(log, sdk(rows[:2]))) == {"after-list": 1}
    # Asked for the user, the sessions that the list does not know count as well.
    assert found(reconcile(log, sdk(rows[:2]), of_user=True)) == {"after-list": 2}


def test_another_use_of_a_users_sessions_is_named() -> None:
    log = Log()
    first = log.calls(1)
    # Somebody used the token without a number, and another session of the same user.
    log.add(session=SESSION, producer_seq=2)
    log.calls(1, session=OTHER)
    log.calls(2, session=OTHER, asked=False)
    rest = log.calls(2)
    rows = [*first, *rest]
    assert found(reconcile(log, sdk(rows))) == {"only-ours": 1}
    assert found(reconcile(log, sdk(rows), of_user=True)) == {"only-ours": 2}


def test_what_the_list_lost_is_told_apart() -> None:
    log = Log()
    rows = log.calls(*range(1, 9))
    passed = [Passed(2, SESSION, 4, 5)]
    some = [row for row in rows if row.caller_seq in (3, 6, 7, 8)]
    assert found(reconcile(log, sdk(some, *passed, part=3))) == {
        "not-listed": 2, "before-list": 2
    }  # fmt: skip
    assert found(reconcile(log, sdk(some, *passed))) == {"not-listed": 2, "only-ours": 2}
    log.rows = [row._replace(producer_seq=0) for row in some]
    # Numbers that were passed over leave no hole that anybody could explain.
    assert found(reconcile(log, sdk(some, *passed))) == {"call": 2}


def test_a_session_that_the_list_calls_otherwise_is_found_by_its_events() -> None:
    log = Log()
    rows = log.calls(1, 2, 4)
    log.rows = [row._replace(producer_seq=0) for row in rows]
    unnamed = [row._replace(session="~77") for row in rows]
    lost = Item(9, b"", "~77", 3, "", log.time, sent=True)
    report = reconcile(log, sdk(unnamed, lost))
    assert found(report) == {"unanswered": 1}
    assert report.details["unanswered"][0]["session"] == SESSION


def test_a_list_of_ids_is_held_against_the_answers_of_the_time_asked_for() -> None:
    log = Log()
    rows = log.calls(*range(1, 7))
    log.calls(7, outcome="denied")
    log.add(type="session.login", producer_seq=8)
    assert found(reconcile(log, ids(rows))) == {}
    report = reconcile(log, ids([*rows[:2], *rows[3:]]))
    assert found(report) == {"only-ours": 1}
    since = rows[4].time_unix_nano
    assert found(reconcile(log, ids(rows), since=since)) == {"outside": 4}
    assert found(reconcile(log, ids(rows[4:]), since=since)) == {}
    # Also what is no prediction is in the log.
    assert found(reconcile(log, ids(log.rows))) == {}


def test_young_answers_may_not_have_reached_the_other_side() -> None:
    log = Log()
    rows = log.calls(1, 2)
    assert found(reconcile(log, ids(rows[:1]), now=log.time + SECOND)) == {"not-yet": 1}


def test_one_session_alone_is_compared() -> None:
    log = Log()
    rows = log.calls(1, 2)
    others = log.calls(1, 2, session=OTHER)
    report = reconcile(log, sdk([*rows[:1], *others[:1]]), session=OTHER)
    assert [item["session"] for item in report.details.get("only-ours", [])] == []
    assert found(report)["after-list"] == 1
    assert "call" not in found(report)


def test_lines_that_cannot_be_read_are_a_finding() -> None:
    log = Log()
    rows = log.calls(1)
    report = reconcile(log, sdk(rows, Malformed(7), Other(8)))
    assert found(report) == {"malformed": 1}
    assert report.details["malformed"] == [{"file": "list-0", "line": 7}]
    many = [Malformed(n) for n in range(1, 12_001)]
    assert reconcile(log, sdk(rows, *many)).counts["malformed"] == 12_000


def test_a_table_with_numbers_alone_is_enough() -> None:
    log = Log()
    log.calls(1, 2, 3)
    theirs = [Item(n, b"", SESSION, n) for n in (1, 2, 4)]
    report = reconcile(log, theirs)
    assert found(report) == {"only-ours": 1, "only-theirs": 1}
    assert report.details["only-theirs"][0]["seq"] == 4
