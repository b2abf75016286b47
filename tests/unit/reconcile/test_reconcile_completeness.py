"""What is missing in a log shows by what is there."""

from __future__ import annotations

import secrets
from uuid import UUID

import pytest

from sealward.reconcile.report import Window
from tests.support.trails import OTHER, SECOND, SESSION, START, Log, found, reconcile

TRACE, ROOT = secrets.token_bytes(16), secrets.token_bytes(8)


def test_a_whole_log_is_complete() -> None:
    log = Log()
    log.calls(1, 2, 3, 4, 5)
    log.add(producer="inference", instance="0a", producer_seq=1, type="model.load")
    report = reconcile(log)
    assert found(report) == {}
    assert report.complete


def test_an_event_that_is_left_out_is_named_by_its_neighbours() -> None:
    log = Log()
    log.calls(*range(1, 10))
    gone = [log.rows.pop(6), log.rows.pop(3), log.rows.pop(3)]
    report = reconcile(log)
    assert found(report) == {"number": 3, "call": 3}
    assert not report.complete
    first, second = report.details["number"]
    assert (first["first"], first["last"], first["count"]) == (4, 5, 2)
    assert (first["producer"], first["instance"]) == ("gateway", "feed5eed")
    assert first["after"] < first["before"]
    assert "recorded" not in first
    assert (second["first"], second["last"]) == (7, 7)
    assert [c["first"] for c in report.details["call"]] == [4, 7]
    assert {row.caller_seq for row in gone} == {4, 5, 7}


def test_a_hole_says_which_event_recorded_it() -> None:
    log = Log()
    for n in (1, 2, 6):
        log.add(producer_seq=n)
    gap = log.add(
        type="audit.gap", outcome="failed", producer="audit", instance="",
        target="gateway/feed5eed/3-5",
    )  # fmt: skip
    log.add(
        type="audit.gap", outcome="failed", producer="audit", target="gateway/other/3-5",
        instance="",
    )  # fmt: skip
    (hole,) = reconcile(log).details["number"]
    assert hole["recorded"] == [str(UUID(bytes=gap.event_id))]


@pytest.mark.parametrize("heard", [False, True])
def test_the_lowest_numbers_count_unless_they_came_before(heard: bool) -> None:
    log = Log()
    log.add(producer_seq=4)
    runs = [("gateway", "feed5eed")] if heard else []
    assert found(reconcile(log, heard=runs)) == ({} if heard else {"number": 3})


def test_numbers_of_another_run_begin_anew_and_come_in_any_order() -> None:
    log = Log()
    for n in (2, 1, 3):
        log.add(producer_seq=n)
    for n in (1, 3, 2):
        log.add(producer_seq=n, instance="0b")
    assert found(reconcile(log)) == {}


def test_what_is_twice_is_named() -> None:
    log = Log()
    first = log.add(producer_seq=1, session=SESSION, caller_seq=1, trace_id=TRACE, span_id=ROOT)
    again = log.add(producer_seq=1, session=SESSION, caller_seq=1, trace_id=TRACE, span_id=ROOT)
    log.add(event_id=first.event_id, producer_seq=2)
    report = reconcile(log)
    assert found(report) == {
        "double-number": 1, "double-call": 1, "double-span": 1, "double-event": 1
    }  # fmt: skip
    assert report.details["double-number"][0]["log_index"] == again.log_index


def test_young_holes_may_still_close() -> None:
    log = Log()
    log.calls(1, 3)
    log.rows[-1] = log.rows[-1]._replace(producer_seq=5)
    report = reconcile(log, now=log.time + SECOND)
    assert found(report) == {"not-yet": 3 + 1}
    assert report.complete


def test_what_a_spool_holds_is_not_missing_yet() -> None:
    log = Log()
    for n in (1, 4):
        log.add(producer="keys", instance="0c", producer_seq=n, type="keys.branch-open")
    oldest = log.time - SECOND
    assert found(reconcile(log, spools={"keys": oldest})) == {"not-yet": 2}
    # It waits since later than the hole: it is not what is missing.
    assert found(reconcile(log, spools={"keys": log.time + SECOND})) == {"number": 2}
    assert found(reconcile(log, spools={"keys": None})) == {"number": 2}
    assert found(reconcile(log, spools={"inference": oldest})) == {"number": 2}


def test_only_holes_of_the_time_asked_for_count() -> None:
    log = Log()
    rows = [log.add(producer_seq=n) for n in (1, 3, 4, 6, 7, 9)]
    since, until = rows[2].time_unix_nano, rows[4].time_unix_nano
    report = reconcile(log, since=since, until=until, heard=[("gateway", "feed5eed")])
    assert [hole["first"] for hole in report.details["number"]] == [5]


def test_a_session_is_due_from_its_login_on() -> None:
    log = Log()
    log.calls(5, 6)
    assert found(reconcile(log)) == {"call": 4}
    # Read from the middle: what came before cannot be told ...
    assert found(reconcile(log, since=START)) == {}
    # ... unless the session began in it.
    log.rows.insert(0, log.add(type="session.login", session=SESSION, instance=""))
    log.rows.pop()
    assert found(reconcile(log, since=START)) == {"call": 4}


def test_numbers_that_do_not_go_up_one_by_one_are_not_judged() -> None:
    log = Log()
    log.calls(10, 5_000_000, 70_000_000)
    report = reconcile(log)
    assert found(report) == {"sparse": 1}
    assert report.complete
    log.calls(1, 400, session=OTHER)
    assert found(reconcile(log)) == {"sparse": 1, "call": 398}


def test_one_session_alone() -> None:
    log = Log()
    log.calls(1, 3)
    log.calls(1, 4, session=OTHER)
    log.rows[-1] = log.rows[-1]._replace(producer_seq=99)
    assert found(reconcile(log, session=OTHER)) == {"call": 2}


def traced(log: Log, **fields: object) -> None:
    log.add(trace_id=TRACE, span_id=ROOT, parent_span_id=b"caller--", **fields)


def run(log: Log, **fields: object) -> None:
    values = {"parent_span_id": ROOT, "trace_id": TRACE, "producer": "inference", **fields}
    log.add(type="inference.run", instance="0d", **values)


def test_a_traced_answer_needs_the_span_of_its_run() -> None:
    log = Log()
    traced(log)
    report = reconcile(log)
    assert found(report) == {"span": 1}
    assert report.details["span"][0]["trace_id"] == TRACE.hex()
    oldest = log.time - SECOND
    assert found(reconcile(log, spools={"inference": oldest})) == {"not-yet": 1}
    unknown = reconcile(log, spools={"inference": None})
    assert unknown.details["span"][0]["spool"] == "unknown"
    run(log)
    assert found(reconcile(log)) == {}


def test_a_workload_cannot_stand_in_for_us() -> None:
    log = Log()
    traced(log)
    run(log, producer="spiffe://sealward.local/workload/pacs")
    assert found(reconcile(log)) == {"span": 1}
    log = Log()
    run(log)
    log.add(trace_id=TRACE, span_id=ROOT, producer="spiffe://sealward.local/workload/pacs")
    assert found(reconcile(log)) == {"root": 1}


@pytest.mark.parametrize("outcome", ["denied", "failed"])
def test_what_was_not_answered_needs_no_span(outcome: str) -> None:
    log = Log()
    traced(log, outcome=outcome)
    assert found(reconcile(log)) == {}


def test_a_span_without_its_root_is_named() -> None:
    log = Log()
    run(log)
    report = reconcile(log)
    assert found(report) == {"root": 1}
    assert report.details["root"][0]["producer"] == "inference"
    # A workload's parent may be anywhere.
    log = Log()
    run(log, producer="spiffe://sealward.local/workload/pacs")
    assert found(reconcile(log)) == {}


def test_details_are_bounded_and_counts_are_not() -> None:
    log = Log()
    for n in range(1, 100, 2):
        log.add(producer_seq=n)
    report = reconcile(log, limit=5)
    assert report.counts["number"] == 49
    assert len(report.details["number"]) == 5
    assert len(reconcile(log, limit=0).details["number"]) == 49


def test_a_window_has_its_first_moment_and_not_its_last() -> None:
    window = Window(10, 20, 30)
    assert [window.has(time) for time in (9, 10, 19, 20)] == [False, True, True, False]
