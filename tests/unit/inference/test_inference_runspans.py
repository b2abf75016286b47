"""The run of a traced call is on the disk before its answer goes back, and holds up nobody else."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.recorder import Recorder
from sealward.kit.seam import Answer, Call
from sealward.kit.spans import TraceParent
from sealward.kit.spool import Build, Spool
from services.inference.batching import Batcher
from services.inference.metrics import ModelMetrics
from services.inference.runspans import RunSpans
from services.inference.worker import Worker
from tests.support.inference_models import doubling_package, registry_of
from tests.unit.inference.test_inference_batching import ListFront, ask, call

Log = tuple[structlog.typing.FilteringBoundLogger, io.StringIO]
PARENT = TraceParent(b"t" * 16, b"rootspan")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool.db")
    yield opened
    opened.close()


def traced(number: int, rows: Sequence[float] = (1.0,), trace: bytes = PARENT.encoded) -> Call:
    made = call(number, ask(rows))
    made.trace = trace
    return made


class SlowRecorder(Recorder):
    """A recorder whose disk waits until it may go on."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(spool, "inference")
        self.go = threading.Event()
        self.writes: list[int] = []
        self.error: Exception | None = None

    def keep(self, builds: Sequence[Build]) -> None:
        assert self.go.wait(20)
        self.writes.append(len(builds))
        if self.error is not None:
            raise self.error
        super().keep(builds)


class Bench:
    def __init__(self, log: Log, metrics: ModelMetrics, spool: Spool, *batches: list[Call]) -> None:
        self.front = ListFront(*batches)
        self.recorder = SlowRecorder(spool)
        self.deaths: list[str] = []
        self.spans = RunSpans(self.front, self.recorder, log[0], self.deaths.append)
        batcher = Batcher(registry_of(doubling_package()), log[0], metrics)
        self.worker = Worker(self.front, batcher, log[0], self.deaths.append, self.spans.put)

    def serve(self) -> None:
        """Let the worker do all batches, while the disk still waits."""
        self.worker.start()
        self.worker.join(20)
        self.spans.start()

    def finish(self) -> dict[int, Answer]:
        self.recorder.go.set()
        self.spans.close(20)
        assert not self.deaths
        by_id = {answer.id: answer for answer in self.front.answers}
        assert len(by_id) == len(self.front.answers)
        return by_id


def attributes(span: Span) -> dict[str, Any]:
    return {
        a.key.removeprefix("sealward."): getattr(a.value, str(a.value.WhichOneof("value")))
        for a in span.attributes
    }


def test_the_run_is_recorded_below_the_calls_own_span(
    log: Log, metrics: ModelMetrics, spool: Spool
) -> None:
    bench = Bench(log, metrics, spool, [call(1, ask([1.0])), traced(2, (1.0, 2.0)), traced(3)])
    bench.serve()
    # The untraced one did not wait for the disk, and the traced ones did.
    assert [answer.id for answer in bench.front.answers] == [1]
    answers = bench.finish()
    assert sorted(answers) == [1, 2, 3]
    assert all(answer.error is None and answer.record for answer in answers.values())
    assert bench.recorder.writes == [2]
    spans = [Span.FromString(body) for _, body in spool.peek(10, 1 << 20)]
    assert [(s.name, s.trace_id, s.parent_span_id) for s in spans] == [
        ("inference.run", PARENT.trace_id, PARENT.span_id)
    ] * 2
    assert all(0 < s.start_time_unix_nano <= s.end_time_unix_nano for s in spans)
    said = attributes(spans[0])
    assert said["outcome"] == "ok"
    assert said["rows"] == 2
    assert {"model.name", "model.version", "model.digest", "batch.size", "batch.position"} <= set(
        said
    )
    assert [attributes(s)["producer.seq"] for s in spans] == [1, 2]


def test_what_gathers_meanwhile_shares_one_write(
    log: Log, metrics: ModelMetrics, spool: Spool
) -> None:
    batches = [[traced(n), call(n + 100, ask([1.0]))] for n in range(1, 6)]
    bench = Bench(log, metrics, spool, *batches)
    bench.serve()
    assert sorted(bench.finish()) == [1, 2, 3, 4, 5, 101, 102, 103, 104, 105]
    assert bench.recorder.writes == [5]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SealwardError(Reason.AUDIT_UNAVAILABLE, "full"), Reason.AUDIT_UNAVAILABLE),
        (RuntimeError("canary-8c"), Reason.INTERNAL),
    ],
)
def test_no_record_no_answer(
    log: Log, metrics: ModelMetrics, spool: Spool, error: Exception, reason: Reason
) -> None:
    bench = Bench(log, metrics, spool, [traced(1), call(2, ask([1.0]))])
    bench.recorder.error = error
    bench.serve()
    answers = bench.finish()
    assert answers[1].error is not None
    assert (answers[1].error.reason, answers[1].body) == (reason, b"")
    assert answers[2].error is None
    assert "canary" not in log[1].getvalue()


@pytest.mark.parametrize("trace", [b"", b"short", bytes(24), b"t" * 25])
def test_what_is_no_trace_is_not_recorded(
    log: Log, metrics: ModelMetrics, spool: Spool, trace: bytes
) -> None:
    bench = Bench(log, metrics, spool, [traced(1, trace=trace)])
    bench.serve()
    assert bench.finish()[1].error is None
    assert spool.depth == 0


def test_a_failed_call_has_no_run(log: Log, metrics: ModelMetrics, spool: Spool) -> None:
    bad = traced(1)
    bad.body = b"\xff"
    bench = Bench(log, metrics, spool, [bad])
    bench.serve()
    assert bench.finish()[1].error is not None
    assert spool.depth == 0


def test_without_anybody_to_record_it_a_traced_call_is_not_answered(
    log: Log, metrics: ModelMetrics
) -> None:
    batcher = Batcher(registry_of(doubling_package()), log[0], metrics)
    given: list[Answer] = []
    with pytest.raises(RuntimeError):
        batcher.handle([traced(1)], given.extend)
    assert given == []
