"""A real audit service is given what it should not be: refused or left out, and it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.api.common.v1.batch_pb2 import Reply
from sealward.kit.exporter import EXPORT_METHOD, export_request
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from tests.fault.test_audit_floods import Watched
from tests.integration.test_audit_service import AppendStream, verify_receipt
from tests.support.audit_suite import entry_bytes, span_bytes
from tests.support.inference_suite import until

SECRET = "Miller, born 1950-04-01"
OUTSIDE = {"patient.name": SECRET, "http.url": SECRET, "sealward.diagnosis": SECRET}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    made = Watched(tmp_path_factory.mktemp("audit"))
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture
def stream(pair: Watched) -> Iterator[AppendStream]:
    opened = AppendStream(pair.to_audit().get())
    yield opened
    opened.close()


def nowhere(secret: str, folder: Path) -> bool:
    found = [p for p in folder.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    return not found


def test_attributes_that_are_not_on_the_list_are_left_out_and_counted(
    pair: Watched, stream: AppendStream
) -> None:
    def dropped() -> float:
        return pair.metrics()["sealward_audit_attributes_dropped_total"]

    before = dropped()
    appended, exported = new_event_id(), new_event_id()
    (reply,), note = stream.ask(
        [entry_bytes(event_id=appended, span=span_bytes(extra=dict(OUTSIDE)))]
    )
    verify_receipt(reply, pair.checkpoint(note))
    assert dropped() == before + 3
    call = pair.to_audit("inference").get().unary_unary(EXPORT_METHOD)
    extra = {**OUTSIDE, "sealward.event.id": exported.hex(), "sealward.model.name": "left-out"}
    answer = call(export_request([span_bytes(extra=extra)]), timeout=20, wait_for_ready=True)
    assert answer == b""
    found = [e.event_id for e in pair.events(model="left-out")]
    assert len(found) == 1
    assert dropped() >= before + 6
    for event_id in (appended, *found):
        opened = pair.opened(event_id)
        assert not OUTSIDE.keys() & opened.keys()
        assert SECRET not in str(opened)
    assert nowhere(SECRET, pair.audit.data)


def test_what_is_no_entry_is_refused_and_those_beside_it_are_not(
    pair: Watched, stream: AppendStream
) -> None:
    def refused() -> float:
        return pair.metrics()["sealward_audit_refused_total"]

    before, size = refused(), len(pair.events(limit=10_000, type="inference.*"))
    long = dict.fromkeys(
        [f"sealward.{n}" for n in (
            "reason", "target", "organization", "policy.id", "model.version", "runtime.digest",
            "data.origin", "data.category",
        )],
        "x" * 250,
    )  # fmt: skip
    bodies = {
        "good": entry_bytes(),
        "too large": entry_bytes(span=span_bytes(extra=dict(long))),
        "no message": b"\xff" * 40,
        "half a span": entry_bytes(span=span_bytes()[:-7]),
        "no span": entry_bytes(span=b""),
        "no id": entry_bytes(event_id=b"short"),
        "no type": entry_bytes(span=span_bytes(event_type="NOT A TYPE")),
        "also good": entry_bytes(),
    }
    replies, note = stream.ask(list(bodies.values()))
    by_name = dict(zip(bodies, replies, strict=True))
    for name in ("good", "also good"):
        verify_receipt(by_name[name], pair.checkpoint(note))
    assert {name: reason(reply) for name, reply in by_name.items() if reply.code} == {
        "too large": "MESSAGE_TOO_LARGE",
        "no message": "REQUEST_MALFORMED",
        "half a span": "FIELD_INVALID",
        "no span": "FIELD_INVALID",
        "no id": "FIELD_INVALID",
        "no type": "FIELD_INVALID",
    }
    until(lambda: refused() == before + 6)
    assert len(pair.events(limit=10_000, type="inference.*")) == size + 2
    assert pair.verify().unknown == ()


def reason(reply: Reply) -> str:
    return Reason(reply.reason).name
