"""Floods against a real audit service: repetitions without end, and callers that never read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.api.common.v1.batch_pb2 import Call
from sealward.kit import attributes as names
from sealward.kit.enroll import enroll
from sealward.kit.exporter import EXPORT_METHOD, export_request
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.kit.tls import Credentials, Material
from tests.integration.test_audit_service import AppendStream, Pair, verify_receipt
from tests.support import tlog_go
from tests.support.audit_suite import entry_bytes, span_bytes
from tests.support.inference_suite import until
from tests.support.scraping import samples, scrape

# An entry as large as one may be, so that its receipt is, too.
LARGE = dict.fromkeys(
    (names.TARGET, names.ACTOR_CERT, names.POLICY_DIGEST, names.ORGANIZATION, names.DATA_ORIGIN),
    "x" * 240,
)
REPEATS = 40


class Watched(Pair):
    """A pair whose audit service is watched by its metrics."""

    material: Material

    def start(self) -> Watched:
        super().start()
        self.material = enroll(self.folder / "enroll", "admin", 20)
        return self

    def metrics(self) -> dict[str, float]:
        lines = self.audit.log.read_text().splitlines()
        (started,) = (json.loads(x) for x in lines if '"event": "started"' in x)
        return samples(scrape(started["metrics"], self.material))

    def memory(self) -> int:
        assert self.audit.process is not None
        return int(psutil.Process(self.audit.process.pid).memory_info().rss)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Watched]:
    folder = tmp_path / "suite"
    folder.mkdir(mode=0o700)
    made = Watched(folder)
    try:
        yield made.start()
    finally:
        made.end()


def all_at_once(*work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def test_a_flood_of_repetitions_stores_each_once_and_lets_others_through(
    tmp_path: Path, pair: Watched
) -> None:
    bodies = [entry_bytes(patient="again") for _ in range(60)]
    spans = [span_bytes("service.start") for _ in range(100)]
    taken = new_event_id()
    fresh: dict[bytes, int] = {}
    places: list[list[int]] = []

    def repeat() -> None:
        stream = AppendStream(pair.to_audit().get())
        for _ in range(REPEATS):
            replies, note = stream.ask(bodies)
            checkpoint = pair.checkpoint(note)
            places.append([verify_receipt(reply, checkpoint).log_index for reply in replies])
        stream.close()

    def export() -> None:
        call = pair.to_audit("inference").get().unary_unary(EXPORT_METHOD)
        for _ in range(REPEATS):
            call(export_request(spans), timeout=60, wait_for_ready=True)

    def conflict() -> None:
        stream = AppendStream(pair.to_audit().get())
        stream.ask([entry_bytes(event_id=taken)])
        for _ in range(REPEATS):
            others = [entry_bytes(event_id=taken) for _ in range(20)]
            replies, _ = stream.ask(others)
            assert {reply.reason for reply in replies} == {Reason.ALREADY_EXISTS}
        stream.close()

    def go_on() -> None:
        stream = AppendStream(pair.to_audit().get())
        for _ in range(REPEATS):
            replies, note = stream.ask([entry_bytes(patient="fresh")])
            receipt = verify_receipt(replies[0], pair.checkpoint(note))
            fresh[receipt.leaf[1:17]] = receipt.log_index
        stream.close()

    for name in ("gateway", "inference", "admin"):
        pair.to_audit(name)
    all_at_once(repeat, repeat, export, conflict, go_on)

    # Every repetition got the place of the first.
    assert places == [places[0]] * (2 * REPEATS)
    found = {e.event_id: e.log_index for e in pair.events(patient="fresh", limit=1000)}
    assert {i: found[i] for i in fresh} == fresh
    assert len(fresh) == REPEATS
    stored = pair.events(limit=10_000)
    ids = [event.event_id for event in stored]
    assert len(set(ids)) == len(ids)
    kinds = [event.type for event in stored]
    assert kinds.count("inference.predict") == len(bodies) + 1 + REPEATS
    assert kinds.count("service.start") == len(spans)
    # A batch of conflicts is one event, however many there were in it.
    told = [event for event in stored if event.type == "audit.conflict"]
    assert 1 <= len(told) <= REPEATS
    shown = pair.metrics()
    assert shown["sealward_audit_conflicts_total"] == 20 * REPEATS
    repeated = (2 * REPEATS - 1) * len(bodies) + (REPEATS - 1) * len(spans)
    assert shown["sealward_audit_repeated_total"] == repeated
    assert shown["sealward_ready"] == 1
    verify_outside(pair, tmp_path)


def never_reading(pair: Watched, messages: int, sent: list[int]) -> tuple[grpc.Channel, Any]:
    """Open an Append stream that sends and reads nothing, with a small window."""
    credentials = Credentials(enroll(pair.folder / "enroll", "gateway", 20)).channel()
    options = [
        ("grpc.ssl_target_name_override", "audit.sealward.local"),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65_536),
    ]
    channel = grpc.secure_channel(pair.audit.address, credentials, options)

    def requests() -> Iterator[audit_pb2.AppendRequest]:
        for _ in range(messages):
            span = span_bytes(extra=dict(LARGE))
            calls = [Call(id=sent[0] + n, body=entry_bytes(span=span)) for n in range(100)]
            sent[0] += len(calls)
            yield audit_pb2.AppendRequest(calls=calls)

    return channel, AuditServiceStub(channel).Append(requests(), wait_for_ready=True)


def test_who_never_reads_holds_up_nobody_and_fills_no_memory(tmp_path: Path, pair: Watched) -> None:
    stream = AppendStream(pair.to_audit().get())
    stream.ask([entry_bytes()])
    before = pair.memory()
    sent = [0]
    # Far more than may wait for whoever does not read: some 120 MiB of answers.
    channel, answers = never_reading(pair, 400, sent)
    with closing(channel):
        until(lambda: pair.metrics()["sealward_audit_held_streams"] == 1, seconds=120)
        for _ in range(20):
            replies, note = stream.ask([entry_bytes(patient="p")])
            verify_receipt(replies[0], pair.checkpoint(note))
        shown = pair.metrics()
        assert shown["sealward_audit_held_streams"] == 1
        assert sent[0] < 40_000
        assert pair.memory() - before < 150 << 20
        # Who reads after all gets what it is owed; of the rest it sends on.
        for _ in range(3):
            answer = next(answers)
            checkpoint = pair.checkpoint(answer.checkpoint)
            for reply in answer.replies:
                verify_receipt(reply, checkpoint)
        answers.cancel()
    until(lambda: pair.metrics()["sealward_audit_held_streams"] == 0)
    replies, note = stream.ask([entry_bytes(patient="p")])
    verify_receipt(replies[0], pair.checkpoint(note))
    stream.close()
    verify_outside(pair, tmp_path)


def verify_outside(pair: Watched, folder: Path) -> None:
    """Let Go's packages verify all of the log, after a stop that had nothing left to do."""
    assert pair.audit.end() == 0
    log, vkey = pair.audit.data / "log", pair.audit.data / "log.vkey"
    assert pair.verify().unknown == ()
    status, output = tlog_go.verify(tlog_go.build(folder), log, vkey)
    assert status == 0, output
