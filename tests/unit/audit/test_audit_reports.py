"""The reports say what the rows say: nothing more, and never less."""

from __future__ import annotations

from typing import Any

import pytest

from services.audit.index import Row
from services.audit.reports.activity import activity
from services.audit.reports.bursts import bursts
from services.audit.reports.disclosures import NOT_ACCOUNTED, report, suspensions
from services.audit.reports.found import Found
from services.audit.reports.reviews import queue, target
from services.gateway.purposes import PURPOSES

SECOND = 1_000_000_000
DAY = 24 * 3600 * SECOND
NOW = 20_000 * DAY
NIGHT = NOW + DAY + 3 * 3600 * SECOND

EMPTY = Row(
    b"", 0, "inference.predict", "ok", "OK", "", "", "user", "", 0, "", 0, "", "", "", "", "", "",
    0, b"", b"", b"", "", 0, "",
)  # fmt: skip


def found(place: int, time: int = NOW, **values: Any) -> Found:
    event_id = place.to_bytes(16, "big")
    return Found("log", place, EMPTY._replace(event_id=event_id, time=time, **values))


def accounted(*events: Found, **options: Any) -> list[tuple[str, str, int]]:
    settings: dict[str, Any] = {
        "access": False, "summarise": True, "for_patient": False, "suspended_until": {}, "now": NOW,
        **options,
    }  # fmt: skip
    rows = report(events, **settings).disclosures
    return [(row.recipient, row.purpose, row.count) for row in rows]


def test_the_accounting_leaves_out_treatment_payment_and_operations() -> None:
    events = [
        found(n, actor="ada", purpose=purpose)
        for n, purpose in enumerate(("TREAT", "HPAYMT", "HOPERAT", "ETREAT", "PATRQT"))
    ]
    research = found(9, actor="ada", organization="University", purpose="HRESCH")
    assert accounted(*events, research) == [("University", "HRESCH", 1)]
    whole = report(
        [*events, research], access=False, summarise=True, for_patient=False, suspended_until={},
        now=NOW,
    )  # fmt: skip
    assert (whole.events, whole.excluded) == (6, 5)
    assert len(accounted(*events, research, access=True)) == 6


@pytest.mark.parametrize("purpose", ["", "NOCODE", "DONAT", "HLEGAL", "GOV", "PUBHLTH", "FAMRQT"])
def test_what_is_not_clearly_excluded_is_accounted_for(purpose: str) -> None:
    assert accounted(found(1, actor="ada", purpose=purpose)) == [("ada", purpose, 1)]


def test_the_excluded_purposes_are_purposes() -> None:
    assert NOT_ACCOUNTED < PURPOSES


def test_a_refused_call_discloses_nothing_but_is_an_access() -> None:
    events = [
        found(1, actor="ada", purpose="HRESCH", outcome="denied"),
        found(2, actor="ada", purpose="HRESCH", outcome="failed"),
        found(3, actor="local", type="audit.query"),
        found(4, actor="local", type="audit.export"),
    ]
    assert accounted(*events) == [("local", "", 1)]
    assert len(accounted(*events, access=True)) == 4


def test_breaking_the_glass_discloses_nothing_but_is_an_access() -> None:
    events = [
        found(1, actor="eve", type="session.break-glass"),
        found(2, actor="eve", purpose="ETREAT"),
        found(3, actor="eve", purpose="HLEGAL"),
        found(4, actor="pia", type="deid.reidentify"),
    ]
    assert accounted(*events) == [("eve", "HLEGAL", 1)]
    assert len(accounted(*events, access=True)) == 4


def test_repeated_disclosures_are_summed_up() -> None:
    events = [
        found(n, NOW + n, actor="ada", purpose="HRESCH", model="m", data_category="lab")
        for n in range(250)
    ]
    (row,) = report(
        events, access=False, summarise=True, for_patient=False, suspended_until={}, now=NOW
    ).disclosures
    assert (row.count, row.first, row.last) == (250, NOW, NOW + 249)
    assert row.what == "lab · m"
    assert [e.place for e in row.events] == [*range(99), 249]
    assert len(accounted(*events, summarise=False)) == 250


def test_a_suspended_disclosure_is_for_officers_alone() -> None:
    records = [
        found(1, 10, type="audit.suspend", target=f"FBI/{NOW + 5}"),
        found(2, 20, type="audit.suspend", target=f"OCR/{NOW + 5}"),
        found(3, 30, type="audit.suspend", target="OCR/0"),
        found(4, 40, type="audit.suspend", outcome="failed", target="FBI/0"),
        found(5, 50, type="audit.suspend", target="FBI"),
    ]
    until = suspensions(records)
    assert until == {"FBI": NOW + 5, "OCR": 0}
    events = [found(9, organization="FBI"), found(10, organization="OCR")]
    assert accounted(*events, suspended_until=until) == [("FBI", "", 1), ("OCR", "", 1)]
    assert accounted(*events, suspended_until=until, for_patient=True) == [("OCR", "", 1)]
    assert len(accounted(*events, suspended_until=until, for_patient=True, now=NOW + 6)) == 2


def test_the_review_queue_keeps_what_is_not_decided() -> None:
    events = [found(n, NOW - n, break_glass=1, actor="ada") for n in range(1, 5)]

    def decision(place: int, event: int, verdict: str, **values: Any) -> Found:
        decided = target(event.to_bytes(16, "big"), verdict)
        return found(place, NOW + place, type="audit.review", target=decided, actor="eve", **values)

    decisions = [
        decision(10, 1, "not-justified"),
        decision(11, 1, "justified"),
        decision(12, 2, "escalated"),
        decision(13, 3, "justified", outcome="denied"),
        decision(14, 4, "whatever"),
        found(15, type="audit.review", target=""),
    ]
    items, waiting = queue(events, decisions, decided=False)
    assert [item.event.place for item in items] == [4, 3, 2]
    assert waiting == 3
    items, _ = queue(events, decisions, decided=True)
    assert [(item.event.place, item.verdict) for item in items] == [
        (4, ""), (3, ""), (2, "escalated"), (1, "justified"),
    ]  # fmt: skip


def refusals(*seconds: float, **values: Any) -> list[Found]:
    return [
        found(n, NOW + int(at * SECOND), outcome="denied", **{"actor": "mallory", **values})
        for n, at in enumerate(seconds)
    ]


def many(events: list[Found], threshold: int = 3, window: int = 10, **options: Any) -> Any:
    options = {"logins": False, **options}
    found_ = bursts(events, threshold=threshold, window=window * SECOND, **options)
    return [(b.by, b.who, b.count) for b in found_]


def test_bursts() -> None:
    assert many(refusals(0, 4, 9)) == [("actor", "mallory", 3)]
    assert many(refusals(0, 6, 12, 18)) == []
    assert many(refusals(0, 1, 2, 30, 31, 32, 33)) == [
        ("actor", "mallory", 4),
        ("actor", "mallory", 3),
    ]
    both = refusals(0, 1, 2, patient="p1")
    assert many(both) == [("actor", "mallory", 3), ("patient", "p1", 3)]
    allowed = [found(n, actor="ada") for n in range(9)]
    assert many(allowed) == []


def test_a_summary_counts_what_it_stands_for() -> None:
    summary = refusals(0, type="session.denied-summary", counted=400)
    assert many(summary, logins=True) == [("actor", "mallory", 400)]
    # A refusal that names a number is one refusal.
    assert many(refusals(0, type="audit.query", counted=400)) == []


def test_failed_logins_alone() -> None:
    logins = refusals(0, 1, 2, type="session.login", reason="LOGIN_FAILED")
    others = refusals(0, 1, 2, type="inference.predict")
    assert many(logins + others, logins=True) == [("actor", "mallory", 3)]
    assert many(others, logins=True) == []


def test_activity() -> None:
    events = [
        found(1, NOW + 8 * 3600 * SECOND, actor="ada", model="m1", patient="p1"),
        found(2, NOW + 9 * 3600 * SECOND, actor="ada", model="m2", patient="p1", break_glass=1),
        found(3, NIGHT, actor="ada", model="m1", patient="p2", outcome="denied"),
        found(4, NOW, actor="bert", outcome="failed"),
        found(5, NOW),
    ]  # fmt: skip
    ada, bert = activity(events, by_model=False, work_from=6, work_to=20)
    assert (ada.name, ada.outcomes, len(ada.patients), len(ada.days)) == (
        "ada", {"ok": 2, "denied": 1, "failed": 0}, 2, 2,
    )  # fmt: skip
    assert (ada.off_hours, ada.break_glass) == (1, 1)
    assert (bert.events, bert.off_hours) == (1, 1)
    assert [row.name for row in activity(events, by_model=True, work_from=6, work_to=20)] == [
        "m1",
        "m2",
    ]
    night = activity(events, by_model=False, work_from=22, work_to=6)
    assert [row.off_hours for row in night] == [2, 0]
    every = activity(events, by_model=False, work_from=0, work_to=0)
    assert [row.off_hours for row in every] == [0, 0]
