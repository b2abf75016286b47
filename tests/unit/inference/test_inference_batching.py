"""Batches of calls: each answered once, none harmed by another, the record tells how it ran."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import structlog
from onnx import helper

from sealward.api.inference.v1.inference_pb2 import InferenceRecord
from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.kit.identity import Identity, Peer
from sealward.kit.reasons import Reason
from sealward.kit.seam import Answer, Call
from services.inference.batching import MODEL_INFER, Batcher
from services.inference.engine import RunError
from services.inference.metrics import ModelMetrics
from services.inference.package import Package
from services.inference.registry import Model
from services.inference.worker import Worker
from tests.support.inference_models import (
    doubling_package,
    identity_package,
    make_onnx,
    manifest_dict,
    package_of,
    registry_of,
)
from tests.support.inference_requests import infer_request, output_of

Log = tuple[structlog.typing.FilteringBoundLogger, io.StringIO]
PEER = Peer(Identity("spiffe://t/service/gateway", "t", "service", "gateway"), b"", "", "TLSv1.3")


def call(
    number: int, body: bytes, *, deadline: float = math.inf, method: str = MODEL_INFER
) -> Call:
    return Call(number, method, PEER, {}, deadline, body)


def ask(rows: Sequence[float], **more: object) -> bytes:
    values = [v for row in rows for v in (row, row, row)]
    return infer_request(values, shape=[len(rows), 3], **more).SerializeToString()  # type: ignore[arg-type]


@dataclass
class Harness:
    batcher: Batcher
    model: Model
    goes: list[list[Answer]] = field(default_factory=list)

    def handle(self, calls: Sequence[Call], **more: object) -> dict[int, Answer]:
        self.goes = []
        self.batcher.handle(calls, lambda answers: self.goes.append(list(answers)), **more)  # type: ignore[arg-type]
        answers = [answer for go in self.goes for answer in go]
        assert sorted(a.id for a in answers) == sorted(c.id for c in calls)
        return {answer.id: answer for answer in answers}


@dataclass
class Clock:
    now: float = 100.0
    step: float = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def harness(
    log: Log, metrics: ModelMetrics, *packages: Package, clock: Clock | None = None
) -> Harness:
    registry = registry_of(*packages)
    batcher = Batcher(registry, log[0], metrics, clock or Clock())
    return Harness(batcher, registry.find(packages[0].manifest.name, ""))


def values(answer: Answer) -> list[float]:
    assert answer.error is None, answer.error
    return output_of(ModelInferResponse.FromString(answer.body), "y")


def run_of(answer: Answer) -> tuple[int, int, int]:
    record = InferenceRecord.FromString(answer.record)
    return record.rows, record.batch_size, record.batch_position


@pytest.mark.parametrize("mode", ["strict", "tolerance"])
def test_bad_calls_harm_nobody(log: Log, metrics: ModelMetrics, mode: str) -> None:
    h = harness(log, metrics, doubling_package(deterministic=mode))
    answers = h.handle(
        [
            call(1, ask([1.0])),
            call(2, ask([math.nan])),
            call(3, b"\x0a\xff"),
            call(4, ask([2.0, 3.0])),
            call(5, ask([1.0], model="none")),
            call(6, ask([1.0]), deadline=99.0),
            call(7, ask([1.0]), method="/inference.GRPCInferenceService/ServerLive"),
            call(8, ask([4.0], raw=False)),
            call(9, ask([1.0])),
        ],
        cancelled=lambda number: number == 9,
    )
    reasons = {n: a.error.reason for n, a in answers.items() if a.error}
    assert reasons == {
        2: Reason.INPUT_NOT_FINITE,
        3: Reason.REQUEST_MALFORMED,
        5: Reason.MODEL_UNKNOWN,
        6: Reason.DEADLINE_EXCEEDED,
        7: Reason.METHOD_UNKNOWN,
        9: Reason.CANCELLED,
    }
    assert values(answers[1]) == [2.0] * 3
    assert values(answers[4]) == [4.0] * 3 + [6.0] * 3
    assert values(answers[8]) == [8.0] * 3
    assert all(a.body == b"" for a in answers.values() if a.error)
    runs = {n: run_of(answers[n]) for n in (1, 4, 8)}
    if mode == "strict":
        assert runs == {1: (1, 1, 0), 4: (2, 2, 0), 8: (1, 1, 0)}
    else:
        assert runs == {1: (1, 4, 0), 4: (2, 4, 1), 8: (1, 4, 3)}
    refused = InferenceRecord.FromString(answers[2].record)
    assert (refused.model_name, refused.rows, refused.determinism) == ("toy", 0, mode)
    assert answers[5].record == b""


def test_the_record_tells_all_of_the_run(log: Log, metrics: ModelMetrics) -> None:
    h = harness(log, metrics, doubling_package())
    record = InferenceRecord.FromString(h.handle([call(1, ask([1.0]))])[1].record)
    manifest = h.model.manifest
    assert record == InferenceRecord(
        model_name="toy",
        model_version="1",
        model_digest=manifest.digest_bytes,
        rows=1,
        batch_size=1,
        runtime_digest="ab" * 32,
        determinism="strict",
        data_category="test",
        data_origin="test",
    )


def failing_on(value: float, model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make runs with this value in them fail; return the list of the runs' rows."""
    real, runs = model.engine.run, []

    def run(inputs: Sequence[np.ndarray], rows: int) -> Sequence[np.ndarray]:
        runs.append(rows)
        if (inputs[0] == value).any():
            raise RunError("Fail")
        return real(inputs, rows)

    monkeypatch.setattr(model.engine, "run", run)
    return runs


@pytest.mark.parametrize("mode", ["strict", "tolerance"])
def test_a_row_that_breaks_the_model_fails_alone(
    log: Log, metrics: ModelMetrics, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    h = harness(log, metrics, doubling_package(deterministic=mode))
    runs = failing_on(9.0, h.model, monkeypatch)
    answers = h.handle([call(n, ask([float(n)])) for n in (7, 8, 9, 10)])
    assert answers[9].error is not None
    assert answers[9].error.reason is Reason.INTERNAL
    assert [values(answers[n]) for n in (7, 8, 10)] == [[14.0] * 3, [16.0] * 3, [20.0] * 3]
    assert runs == ([1, 1, 1, 1] if mode == "strict" else [4, 1, 1, 1, 1])
    assert run_of(answers[10]) == (1, 1, 0)
    assert '"run.failed"' in log[1].getvalue()


def test_joined_runs_stay_within_the_models_largest(
    log: Log, metrics: ModelMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = harness(log, metrics, doubling_package(deterministic="tolerance", max_rows=4))
    runs = failing_on(-1.0, h.model, monkeypatch)
    sizes = [3, 2, 1, 1, 4, 1]
    answers = h.handle([call(n, ask([float(n)] * size)) for n, size in enumerate(sizes)])
    assert runs == [3, 4, 4, 1]
    assert [run_of(answers[n]) for n in range(6)] == [
        (3, 3, 0), (2, 4, 0), (1, 4, 2), (1, 4, 3), (4, 4, 0), (1, 1, 0),
    ]  # fmt: skip
    for n, size in enumerate(sizes):
        assert values(answers[n]) == [2.0 * n] * 3 * size


def test_deadlines_are_looked_at_before_each_run(log: Log, metrics: ModelMetrics) -> None:
    clock = Clock(step=0.001)
    h = harness(log, metrics, doubling_package(), clock=clock)
    calls = [call(n, ask([1.0]), deadline=100.06) for n in range(30)]
    answers = h.handle(calls)
    late = [n for n, a in answers.items() if a.error]
    assert 0 < len(late) < 30
    assert all(
        a.error.reason is Reason.DEADLINE_EXCEEDED for a in answers.values() if a.error is not None
    )


def test_long_runs_are_answered_as_they_end(log: Log, metrics: ModelMetrics) -> None:
    h = harness(log, metrics, doubling_package(), clock=Clock(step=0.004))
    h.handle([call(n, ask([1.0])) for n in range(6)])
    assert len(h.goes) == 6
    h = harness(log, metrics, doubling_package(), clock=Clock(step=0.000001))
    h.handle([call(n, ask([1.0])) for n in range(6)])
    assert len(h.goes) == 1


def test_models_of_a_batch_are_kept_apart(log: Log, metrics: ModelMetrics) -> None:
    other = identity_package("FP32", 1.0, (-1, 3))
    other = package_of(
        other.onnx,
        {**manifest_dict(
            [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        ), "name": "same"},
        [c.model_dump(mode="json") for c in other.golden.cases],
    )  # fmt: skip
    h = harness(log, metrics, doubling_package(), other)
    answers = h.handle(
        [call(1, ask([3.0])), call(2, ask([3.0], model="same")), call(3, ask([4.0]))]
    )
    assert [values(answers[n])[0] for n in (1, 2, 3)] == [6.0, 3.0, 8.0]


def test_two_outputs_and_strings(log: Log, metrics: ModelMetrics) -> None:
    onnx_bytes = make_onnx(
        [helper.make_node("Identity", ["s"], ["t"]), helper.make_node("Add", ["x", "x"], ["y"])],
        [("s", "BYTES", (-1, 1)), ("x", "FP32", (-1, 1))],
        [("t", "BYTES", (-1, 1)), ("y", "FP32", (-1, 1))],
    )
    specs = [
        [{"name": n, "datatype": d, "shape": [-1, 1]} for n, d in pairs]
        for pairs in ((("s", "BYTES"), ("x", "FP32")), (("t", "BYTES"), ("y", "FP32")))
    ]
    content = ((["a"], [1.0]), (["a"], [2.0]))
    tensors = [
        [{**spec, "shape": [1, 1], "data": data} for spec, data in zip(side, sides, strict=True)]
        for side, sides in zip(specs, content, strict=True)
    ]
    case = {"name": "one", "inputs": tensors[0], "outputs": tensors[1]}
    package = package_of(
        onnx_bytes, manifest_dict(specs[0], specs[1], deterministic="tolerance"), [case]
    )
    h = harness(log, metrics, package)

    def body(text: bytes, number: float, *, raw: bool, outputs: Sequence[str] = ()) -> bytes:
        request = infer_request([text], shape=[1, 1], datatype="BYTES", name="s", raw=raw)
        request.MergeFrom(infer_request([number], shape=[1, 1], name="x", raw=raw))
        for output in outputs:
            request.outputs.add(name=output)
        request.model_name, request.id = "toy", "ünï"
        return request.SerializeToString()

    answers = h.handle(
        [
            call(1, body("ü".encode(), 1.0, raw=True)),
            call(2, body(b"", 2.0, raw=False)),
            call(3, body(b"zz", 3.0, raw=True, outputs=["y", "t"])),
        ]
    )
    for number, wanted in ((1, "ü".encode()), (2, b""), (3, b"zz")):
        response = ModelInferResponse.FromString(answers[number].body)
        assert response.id == "ünï"
        assert output_of(response, "t") == [wanted]
        assert output_of(response, "y") == [2.0 * number]
        assert bool(response.raw_output_contents) is (number != 2)
    third = ModelInferResponse.FromString(answers[3].body)
    assert [output.name for output in third.outputs] == ["y", "t"]


def test_raw_answers_are_what_protobuf_would_write(log: Log, metrics: ModelMetrics) -> None:
    h = harness(log, metrics, doubling_package())
    for size in (1, 2, 50):
        body = ask([1.0] * size, ident="id-1")
        answer = h.handle([call(1, body)])[1].body
        response = ModelInferResponse.FromString(answer)
        assert response.SerializeToString() == answer
        assert (response.model_name, response.model_version, response.id) == ("toy", "1", "id-1")
        assert response.parameters["sealward_model_digest"].string_param == h.model.manifest.digest
        assert list(response.outputs[0].shape) == [size, 3]


def test_half_floats_are_answered_raw_whatever_was_asked(log: Log, metrics: ModelMetrics) -> None:
    onnx_bytes = make_onnx(
        [helper.make_node("Cast", ["x"], ["y"], to=10), helper.make_node("Neg", ["x"], ["z"])],
        [("x", "FP32", (-1, 1))],
        [("y", "FP16", (-1, 1)), ("z", "FP32", (-1, 1))],
    )
    manifest = manifest_dict(
        [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
        [
            {"name": "y", "datatype": "FP16", "shape": [-1, 1]},
            {"name": "z", "datatype": "FP32", "shape": [-1, 1]},
        ],
    )
    case = {
        "name": "one",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}],
        "outputs": [
            {"name": "y", "datatype": "FP16", "shape": [1, 1], "data": [1.5]},
            {"name": "z", "datatype": "FP32", "shape": [1, 1], "data": [-1.5]},
        ],
    }
    h = harness(log, metrics, package_of(onnx_bytes, manifest, [case]))
    for outputs, raw in (((), True), (("y",), True), (("z",), False)):
        body = infer_request([2.5], shape=[1, 1], raw=False, outputs=outputs).SerializeToString()
        response = ModelInferResponse.FromString(h.handle([call(1, body)])[1].body)
        assert bool(response.raw_output_contents) is raw
        for output in response.outputs:
            assert output_of(response, output.name) == [2.5 if output.name == "y" else -2.5]


def test_calls_and_rows_are_counted(log: Log, metrics: ModelMetrics) -> None:
    h = harness(log, metrics, doubling_package())
    h.handle([call(1, ask([1.0])), call(2, ask([1.0, 2.0])), call(3, ask([math.nan]))])
    registry = (
        metrics._ran.labels("toy", "1")._value.get(),
        metrics._rows.labels("toy", "1")._value.get(),
    )
    assert registry == (2, 3)
    assert metrics._refused.labels("toy", "INPUT_NOT_FINITE")._value.get() == 1


class ListFront:
    """Gives batches, takes answers."""

    def __init__(self, *batches: list[Call]) -> None:
        self._batches = list(batches)
        self.answers: list[Answer] = []

    def recv(self) -> list[Call]:
        return self._batches.pop(0) if self._batches else []

    def reply(self, answers: Sequence[Answer], shared: bytes = b"") -> None:
        self.answers += answers

    def cancelled(self, call_id: int) -> bool:
        return False


def test_the_worker_outlives_a_fault_of_ours(
    log: Log, metrics: ModelMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = harness(log, metrics, doubling_package())
    front = ListFront([call(1, ask([1.0])), call(2, b"\xff")], [call(3, ask([1.0]))])
    real = h.batcher._run_model

    def broken_once(*_: object) -> None:
        monkeypatch.setattr(h.batcher, "_run_model", real)
        raise ZeroDivisionError("canary-2f")

    monkeypatch.setattr(h.batcher, "_run_model", broken_once)
    deaths: list[str] = []
    worker = Worker(front, h.batcher, log[0], deaths.append, lambda _traced: None)
    worker.start()
    worker.join(10)
    reasons = {a.id: a.error.reason if a.error else None for a in front.answers}
    assert reasons == {1: Reason.INTERNAL, 2: Reason.REQUEST_MALFORMED, 3: None}
    assert len(front.answers) == 3
    assert not deaths
    assert "canary" not in log[1].getvalue()
