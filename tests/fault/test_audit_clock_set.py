"""The wall clock of a running audit service is set: the log goes on, nothing ends before its time.

Every process of a machine sees the same clock, so keys and audit do here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sealward.kit import attributes as names
from sealward.tlog.checkpoint import Checkpoint
from tests.integration.test_audit_service import AppendStream, Pair, outcome, verify_receipt
from tests.support import tlog_go
from tests.support.audit_suite import entry_bytes, span_bytes
from tests.support.clock import SettableClock
from tests.support.inference_suite import until

DAY = 24 * 3600


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettableClock:
    made = SettableClock(tmp_path)
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def pair(tmp_path: Path, clock: SettableClock) -> Iterator[Pair]:
    folder = tmp_path / "suite"
    folder.mkdir(mode=0o700)
    made = Pair(folder, GAP_SECONDS=1)
    try:
        yield made.start()
    finally:
        made.end()


def test_a_clock_that_is_set_ends_nothing_and_loses_nothing(
    tmp_path: Path, pair: Pair, clock: SettableClock
) -> None:
    promised: dict[bytes, int] = {}
    stream = AppendStream(pair.to_audit().get())

    def append(instance: str, *numbers: int) -> Checkpoint:
        extra = {names.PRODUCER_INSTANCE: instance}
        spans = [span_bytes(extra={**extra, names.PRODUCER_SEQ: n}) for n in numbers]
        replies, note = stream.ask([entry_bytes(span=span, patient="p") for span in spans])
        checkpoint = pair.checkpoint(note)
        for reply in replies:
            receipt = verify_receipt(reply, checkpoint)
            promised[receipt.leaf[1:17]] = receipt.log_index
        return checkpoint

    def published() -> Checkpoint:
        return pair.checkpoint((pair.audit.data / "log/checkpoint").read_bytes())

    origin = append("0", 1).origin
    # More than a year ahead, as far back, and two days each way.
    for number, seconds in enumerate((400 * DAY, -400 * DAY, 2 * DAY, -2 * DAY)):
        # A number that does not come, seen before the clock is set (a query waits for that). Its
        # gap is told by the keeper at the new time, after it has looked whether a log is to end.
        append(f"{number:08x}", 1, 2, 5)
        assert pair.events()
        clock.set(seconds)
        size = append(f"{number:08x}", 6, 7, 8).size
        until(lambda size=size: published().size > size)  # type: ignore[misc]
        assert published().origin == origin
        clock.set(0)
    # Who comes with a certificate that is over by this clock is refused, for as long as it is so.
    clock.set(2 * DAY)
    with pytest.raises(grpc.RpcError) as caught:
        pair.events()
    assert outcome(caught.value).code() is grpc.StatusCode.UNAUTHENTICATED
    clock.set(0)
    found = {e.event_id: e.log_index for e in pair.events(patient="p", limit=1000)}
    assert {event_id: found[event_id] for event_id in promised} == promised
    assert len(pair.events(type="audit.gap")) == 4
    assert not pair.events(type="audit.freeze")
    assert pair.audit.count("log.turned") == pair.audit.count("log.turn-failed") == 0
    stream.close()
    pair.audit.end()
    pair.audit.start()
    report = pair.verify()
    assert (report.origin, report.unknown) == (origin, ())
    program = tlog_go.build(tmp_path)
    status, output = tlog_go.verify(program, pair.audit.data / "log", pair.audit.data / "log.vkey")
    assert status == 0, output
