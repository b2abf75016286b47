"""Whatever is sent: raw and typed mean the same, and nothing but a refusal comes of nonsense."""

from __future__ import annotations

import io
import math
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from sealward.kit.identity import Identity, Peer
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from sealward.kit.seam import Answer, Call
from services.inference.batching import MODEL_INFER, Batcher
from services.inference.datatypes import DATATYPES
from services.inference.metrics import ModelMetrics
from services.inference.package import read_folder, read_package
from services.inference.settings import SHIPPED
from tests.support.inference_models import doubling_package, identity_package, registry_of
from tests.support.inference_requests import infer_request, output_of

PEER = Peer(Identity("spiffe://t/service/gateway", "t", "service", "gateway"), b"", "", "TLSv1.3")
# Reasons that are the caller's fault; INTERNAL is not among them.
CALLERS = {
    Reason.REQUEST_MALFORMED, Reason.FIELD_INVALID, Reason.MODEL_UNKNOWN, Reason.INPUT_NAME,
    Reason.INPUT_DATATYPE, Reason.INPUT_SHAPE, Reason.INPUT_NOT_FINITE, Reason.INPUT_RANGE,
    Reason.OUTPUT_NAME, Reason.NOT_SUPPORTED,
}  # fmt: skip


def numbers(datatype: str) -> st.SearchStrategy[Any]:
    kind = DATATYPES[datatype]
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(max_size=20).map(str.encode)
    if kind.is_integer:
        return st.integers(kind.low, kind.high)
    return st.floats(width=32 if datatype == "FP32" else 64, allow_nan=False, allow_infinity=False)


@cache
def batcher_of(what: str) -> tuple[Batcher, io.StringIO]:
    stream = io.StringIO()
    if what in DATATYPES:
        example: Any = {"BOOL": True, "BYTES": "a"}.get(what, 1)
        packages = [identity_package(what, example)]
    elif what == "shipped":
        packages = [read_package(read_folder(p)) for p in SHIPPED.iterdir() if p.is_dir()]
    else:
        packages = [doubling_package(deterministic=what)]
    registry = registry_of(*packages)
    metrics = ModelMetrics(CollectorRegistry())
    return Batcher(registry, get_logger("inference", stream), metrics), stream


def answer_all(batcher: Batcher, bodies: list[bytes]) -> list[Answer]:
    answers: dict[int, Answer] = {}

    def reply(some: Any) -> None:
        for answer in some:
            assert answer.id not in answers
            answers[answer.id] = answer

    batcher.handle(
        [Call(n, MODEL_INFER, PEER, {}, math.inf, body) for n, body in enumerate(bodies)], reply
    )
    return [answers[n] for n in range(len(bodies))]


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, list[Any], int]:
    datatype = draw(st.sampled_from(sorted(n for n, d in DATATYPES.items() if d.contents)))
    rows = draw(st.integers(1, 12))
    values = draw(st.lists(numbers(datatype), min_size=2 * rows, max_size=2 * rows))
    return datatype, values, rows


@given(tensors())
@settings(max_examples=200, deadline=None)
def test_raw_and_typed_are_answered_alike(tensor: tuple[str, list[Any], int]) -> None:
    datatype, values, rows = tensor
    batcher, _ = batcher_of(datatype)
    bodies = [
        infer_request(values, shape=[rows, 2], datatype=datatype, raw=raw).SerializeToString()
        for raw in (True, False)
    ]
    raw, typed = answer_all(batcher, bodies)
    assert raw.error is None
    assert typed.error is None
    one, other = (ModelInferResponse.FromString(a.body) for a in (raw, typed))
    assert output_of(one, "y") == output_of(other, "y") == values
    assert one.raw_output_contents
    assert not other.raw_output_contents
    assert raw.record == typed.record


@given(
    st.lists(st.lists(st.floats(0, 10, width=32), min_size=3, max_size=9), min_size=1, max_size=9)
)
@settings(max_examples=100, deadline=None)
def test_joined_and_single_runs_agree(requests: list[list[float]]) -> None:
    bodies = [
        infer_request(
            values[: len(values) // 3 * 3], shape=[len(values) // 3, 3]
        ).SerializeToString()
        for values in requests
    ]
    strict = answer_all(batcher_of("strict")[0], bodies)
    joined = answer_all(batcher_of("tolerance")[0], bodies)
    assert [a.body[20:] for a in strict if a.error] == []
    for one, other in zip(strict, joined, strict=True):
        assert output_of(ModelInferResponse.FromString(one.body), "y") == output_of(
            ModelInferResponse.FromString(other.body), "y"
        )


@given(seed=st.integers(0, 2**32 - 1), rows=st.lists(st.integers(1, 40), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_shipped_models_answer_as_bare_onnxruntime(seed: int, rows: list[int]) -> None:
    batcher, _ = batcher_of("shipped")
    rng = np.random.default_rng(seed)
    bodies, wanted = [], []
    for size in rows:
        for name, session, low, high in bare_sessions():
            values = (low + rng.random((size, len(low))) * (high - low)).astype(np.float32)
            request = ModelInferRequest(model_name=name)
            request.inputs.add(name="measurements", datatype="FP32", shape=values.shape)
            request.raw_input_contents.append(values.tobytes())
            bodies.append(request.SerializeToString())
            names = [output.name for output in session.get_outputs()]
            wanted.append([v.tobytes() for v in session.run(names, {"measurements": values})])
    for answer, expected in zip(answer_all(batcher, bodies), wanted, strict=True):
        assert answer.error is None
        response = ModelInferResponse.FromString(answer.body)
        assert list(response.raw_output_contents) == expected


@cache
def bare_sessions() -> list[tuple[str, Any, np.ndarray, np.ndarray]]:
    found = []
    for folder in sorted(p for p in SHIPPED.iterdir() if p.is_dir()):
        package = read_package(read_folder(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            package.onnx, sess_options=options, providers=["CPUExecutionProvider"]
        )
        fields = package.manifest.inputs[0].fields
        low = np.array([f.minimum for f in fields], np.float64)
        high = np.array([f.maximum for f in fields], np.float64)
        found.append((package.manifest.name, session, low, high))
    return found


@st.composite
def nonsense(draw: st.DrawFn) -> bytes:
    """A good request with anything wrong: fields of any value, or bytes changed, cut or added."""
    request = infer_request([1.0, 2.0, 3.0], shape=[1, 3], raw=draw(st.booleans()))
    tensor = request.inputs[0]
    if draw(st.booleans()):
        del tensor.shape[:]
        tensor.shape.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)))
    if draw(st.booleans()):
        request.raw_input_contents.append(draw(st.binary(max_size=40)))
    if draw(st.booleans()):
        tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=4)))
    if draw(st.booleans()):
        tensor.datatype = draw(st.sampled_from([*DATATYPES, "", "FP8"]))
    if draw(st.booleans()):
        request.outputs.add(name=draw(st.text(max_size=3)))
    body = bytearray(request.SerializeToString())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body) - 1))
        body[at] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(1, len(body)))]) + draw(st.binary(max_size=10))


@given(st.lists(nonsense(), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_nonsense_is_refused_and_harms_no_neighbour(bodies: list[bytes]) -> None:
    batcher, stream = batcher_of("tolerance")
    good = infer_request([1.0, 2.0, 3.0], shape=[1, 3]).SerializeToString()
    first, *middle, last = answer_all(batcher, [good, *bodies, good])
    assert first.error is None
    assert first.body == last.body
    for answer in middle:
        assert answer.error is None or answer.error.reason in CALLERS
    assert stream.getvalue() == ""
