"""What privacy officers ask of a real audit service, and who can put words into its mouth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from sealward.api.audit.v1 import review_pb2
from sealward.api.audit.v1.review_pb2_grpc import ReviewServiceStub
from sealward.kit import attributes as names
from sealward.kit.exporter import EXPORT_METHOD, export_request
from sealward.kit.recorder import new_event_id
from tests.integration.test_audit_service import AppendStream, Pair, reason_of
from tests.support.audit_suite import entry_bytes, span_bytes
from tests.support.inference_suite import until

PATIENT = "MRN-glass-2290"
RESEARCH = {names.PURPOSE: "HRESCH", names.ORGANIZATION: "registry"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("audit"))
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture
def review(pair: Pair) -> ReviewServiceStub:
    return ReviewServiceStub(pair.to_audit("admin").get())


def append(pair: Pair, patient: str = "", **extra: Any) -> bytes:
    """Append an event as the gateway does; return its id."""
    event_id = new_event_id()
    stream = AppendStream(pair.to_audit().get())
    kind = str(extra.pop("type", "inference.predict"))
    span = span_bytes(kind, extra=extra)
    (reply,), _ = stream.ask([entry_bytes(event_id=event_id, span=span, patient=patient)])
    assert reply.code == 0, reply.message
    stream.close()
    return event_id


def waiting(review: ReviewServiceStub) -> dict[bytes, str]:
    answer = review.ListBreakGlass(
        review_pb2.ListBreakGlassRequest(decided=True), timeout=20, wait_for_ready=True
    )
    return {item.event.event_id: item.verdict for item in answer.items}


def test_broken_glass_waits_until_somebody_else_decides(
    pair: Pair, review: ReviewServiceStub
) -> None:
    glass = {names.BREAK_GLASS: True, names.BREAK_GLASS_REASON: "EMERGENCY"}
    event = append(pair, PATIENT, **glass)
    own = append(pair, PATIENT, **glass, **{names.ACTOR_ID: "local", names.ACTOR_KIND: "admin"})
    plain = append(pair, PATIENT)
    assert waiting(review) == {event: "", own: ""}
    assert [e.event_id for e in pair.events(break_glass=True)] == [own, event]

    # Another service says that it was decided: that is in the record, and decides nothing.
    target = {names.TARGET: f"{event.hex()}/justified"}
    append(pair, **{"type": "audit.review", **target})
    call = pair.to_audit("inference").get().unary_unary(EXPORT_METHOD)
    call(export_request([span_bytes("audit.review", extra=dict(target))]), timeout=20)
    assert len(pair.events(type="audit.review")) == 2
    assert waiting(review)[event] == ""

    def decide(event_id: bytes, verdict: str) -> review_pb2.SignOffResponse:
        asked = review_pb2.SignOffRequest(event_id=event_id, verdict=verdict)
        return review.SignOff(asked, timeout=20, wait_for_ready=True)

    for event_id, verdict, reason in (
        (plain, "justified", "FIELD_INVALID"),
        (event, "fine", "FIELD_INVALID"),
        (own, "justified", "POLICY_DENIED"),
        (new_event_id(), "justified", "NOT_FOUND"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            decide(event_id, verdict)
        assert reason_of(caught.value) == reason
    assert decide(event, "escalated").earlier == ""
    assert waiting(review)[event] == "escalated"
    assert decide(event, "not-justified").earlier == "escalated"
    assert waiting(review) == {event: "not-justified", own: ""}
    answer = review.ListBreakGlass(review_pb2.ListBreakGlassRequest(), timeout=20)
    assert ([i.event.event_id for i in answer.items], answer.waiting) == ([own], 1)


def accounted(review: ReviewServiceStub, **asked: Any) -> list[review_pb2.Disclosure]:
    answer = review.ReportDisclosures(
        review_pb2.ReportDisclosuresRequest(patient="MRN-accounted", **asked),
        timeout=20, wait_for_ready=True,
    )  # fmt: skip
    return list(answer.disclosures)


def test_nobody_but_audit_itself_suspends_an_accounting(
    pair: Pair, review: ReviewServiceStub
) -> None:
    patient, until_ = "MRN-accounted", (1 << 63) - 1
    append(pair, patient, **RESEARCH)
    append(pair, patient)
    assert [d.recipient for d in accounted(review, for_patient=True)] == ["registry"]
    forged = {"type": "audit.suspend", names.TARGET: f"registry/{until_}", names.PURPOSE: "TREAT"}
    append(pair, patient, **forged)
    assert [d.recipient for d in accounted(review, for_patient=True)] == ["registry"]
    review.SuspendAccounting(
        review_pb2.SuspendAccountingRequest(
            patient=patient, agency="registry", until_unix_nano=until_
        ),
        timeout=20,
    )
    assert accounted(review, for_patient=True) == []
    (shown,) = accounted(review)
    assert shown.suspended


def test_every_question_is_in_the_record(pair: Pair, review: ReviewServiceStub) -> None:
    size = len(pair.events(type="audit.report", limit=1000))
    waiting(review)
    accounted(review, access=True)
    review.ListBursts(review_pb2.ListBurstsRequest(), timeout=20)
    review.ListActivity(review_pb2.ListActivityRequest(user="dr-smith"), timeout=20)
    until(lambda: len(pair.events(type="audit.report", limit=1000)) == size + 4)
    newest = pair.events(type="audit.report", limit=4)
    assert {e.actor for e in newest} == {"local"}
    assert newest[0].target == "dr-smith"
    # With the patient that was asked about, by pseudonym.
    assert newest[2].patient == pair.events(patient="MRN-accounted", limit=1)[0].patient
