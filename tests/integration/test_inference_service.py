"""Real keys and inference processes: predictions, sealed storage, refusals, faults."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest

from sealward.api.inference.v1 import inference_pb2
from sealward.api.inference.v1.inference_pb2 import InferenceRecord, ListModelsRequest
from sealward.api.inference.v1.inference_pb2_grpc import InferenceServiceStub
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from sealward.kit.reasons import Reason
from tests.support.inference_suite import InferStream, Pair, until

SHIPPED = Path(__file__).parents[2] / "services" / "inference" / "shipped"
READY = inference_pb2.MODEL_STATE_READY
FAILED = inference_pb2.MODEL_STATE_FAILED


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    try:
        yield pair.start()
    finally:
        pair.end()


def held_out(model: str) -> tuple[np.ndarray, np.ndarray]:
    with (SHIPPED / model / "heldout.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    table = np.array([[float(v) for v in row[1:]] for row in rows])
    return table[:, :-1].astype(np.float32), table[:, -1]


def request(model: str, rows: np.ndarray, ident: str = "") -> bytes:
    message = ModelInferRequest(model_name=model, id=ident)
    message.inputs.add(name="measurements", datatype="FP32", shape=rows.shape)
    message.raw_input_contents.append(rows.tobytes())
    return message.SerializeToString()


def test_every_held_out_patient_gets_the_answer_of_bare_onnxruntime(pair: Pair) -> None:
    stream = pair.stream()
    for model in ("breast-cancer", "diabetes-progression"):
        rows, _ = held_out(model)
        options = onnxruntime.SessionOptions()
        # With more threads the trees are added up in another order: other last bits.
        options.intra_op_num_threads = 1
        bare = onnxruntime.InferenceSession(
            (SHIPPED / model / "model.onnx").read_bytes(),
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )
        names = [output.name for output in bare.get_outputs()]
        replies = stream.ask([request(model, row[None, :], f"n{n}") for n, row in enumerate(rows)])
        for number, (row, reply) in enumerate(zip(rows, replies, strict=True)):
            assert reply.code == 0
            response = ModelInferResponse.FromString(reply.body)
            assert response.id == f"n{number}"
            assert [output.name for output in response.outputs] == names
            wanted = bare.run(names, {"measurements": row[None, :]})
            assert list(response.raw_output_contents) == [value.tobytes() for value in wanted]
            record = InferenceRecord.FromString(reply.record)
            assert (record.rows, record.batch_size, record.batch_position) == (1, 1, 0)
            assert record.model_name == model
            assert (
                record.model_digest.hex()
                == response.parameters["sealward_model_digest"].string_param
            )
    stream.close()


def test_the_shipped_model_finds_the_truth_of_patients_it_has_not_seen(pair: Pair) -> None:
    rows, truth = held_out("breast-cancer")
    stream = pair.stream()
    (reply,) = stream.ask([request("breast-cancer", rows)])
    stream.close()
    label = np.frombuffer(ModelInferResponse.FromString(reply.body).raw_output_contents[1], "<i8")
    assert (label == truth).mean() > 0.95


def test_bad_calls_of_a_batch_fail_alone(pair: Pair) -> None:
    rows, _ = held_out("breast-cancer")
    good = request("breast-cancer", rows[:1])
    bad = rows[:1].copy()
    bad[0, 2] = np.nan
    stream = pair.stream()
    replies = stream.ask(
        [
            good,
            request("breast-cancer", bad),
            b"\xff\xff\xff",
            request("no-such-model", rows[:1]),
            request("breast-cancer", rows[:1, :5].copy()),
            good,
        ]
    )
    assert [Reason(reply.reason).name if reply.reason else "" for reply in replies] == [
        "", "INPUT_NOT_FINITE", "REQUEST_MALFORMED", "MODEL_UNKNOWN", "INPUT_SHAPE", "",
    ]  # fmt: skip
    assert replies[0].body == replies[5].body
    assert replies[1].field == "inputs[measurements].fields[mean perimeter]"
    assert InferenceRecord.FromString(replies[1].record).model_name == "breast-cancer"
    (other,) = stream.ask([good], method="/inference.GRPCInferenceService/ServerLive")
    assert other.reason == Reason.METHOD_UNKNOWN
    stream.close()


def test_manifests_are_listed(pair: Pair) -> None:
    answer = InferenceServiceStub(pair.channel()).ListModels(ListModelsRequest(), timeout=20)
    assert [(m.name, m.version, m.state) for m in answer.models] == [
        ("breast-cancer", "1", READY),
        ("diabetes-progression", "1", READY),
    ]
    manifest = json.loads(answer.models[0].manifest_json)
    assert manifest["outputs"][0]["name"] == "malignant_probability"
    assert answer.models[0].digest.hex() == manifest["digest"]


def test_nobody_but_the_gateway_is_served(pair: Pair) -> None:
    # The administrator may look at the list of models, and at nothing else.
    listed = InferenceServiceStub(pair.channel("admin")).ListModels(ListModelsRequest(), timeout=20)
    assert listed.models
    with pytest.raises(grpc.RpcError) as refused:
        InferenceServiceStub(pair.channel("audit")).ListModels(ListModelsRequest(), timeout=20)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    for name in ("admin", "audit"):
        with pytest.raises(grpc.RpcError) as cut:
            next(InferStream(pair.channel(name)).answers)
        assert cut.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_nothing_of_a_model_lies_in_clear(pair: Pair) -> None:
    sealed = sorted((pair.inference.data / "models").glob("*/*"))
    assert [path.name for path in sealed] == ["1.key", "1.sealed"] * 2
    models = {
        m: (SHIPPED / m / "model.onnx").read_bytes()
        for m in ("breast-cancer", "diabetes-progression")
    }
    canaries = [
        b"TreeEnsembleClassifier", b"LinearRegressor", b"mean concave points", b"skl2onnx",
        *(onnx[at : at + 48] for onnx in models.values() for at in range(64, len(onnx) - 48, 4096)),
    ]  # fmt: skip
    for path in pair.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(canary in content for canary in canaries), path.name
            assert path.stat().st_mode & 0o077 == 0 or path.suffix == ".log", path.name


def test_opened_models_serve_while_keys_is_away_and_the_start_waits_for_it(
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path).start()
    try:
        rows, _ = held_out("diabetes-progression")
        body = request("diabetes-progression", rows[:1])
        stream = pair.stream()
        (before,) = stream.ask([body])
        pair.keys.end(signal.SIGKILL)
        (after,) = stream.ask([body])
        assert after.body == before.body
        stream.close()

        pair.inference.end(signal.SIGKILL)
        started = pair.inference.count("started")
        process = pair.inference.launch()
        pair.keys.start()
        until(lambda: pair.inference.count("started") > started or process.poll() is not None)
        assert set(pair.models().values()) == {(READY, "")}
        assert pair.inference.count("model.sealed") == 2
    finally:
        pair.end()


def test_a_changed_or_swapped_package_fails_alone_and_is_recorded(tmp_path: Path) -> None:
    pair = Pair(tmp_path).start()
    try:
        pair.inference.end()
        folder = pair.inference.data / "models"
        sealed = folder / "breast-cancer" / "1.sealed"
        content = bytearray(sealed.read_bytes())
        content[len(content) // 2] ^= 1
        sealed.write_bytes(content)
        (folder / "lung").mkdir()
        for suffix in ("key", "sealed"):
            shutil.copy(
                folder / "diabetes-progression" / f"1.{suffix}", folder / "lung" / f"1.{suffix}"
            )
        pair.inference.start()
        models = pair.models()
        assert models["diabetes-progression"] == (READY, "")
        for name in ("breast-cancer", "lung"):
            state, reason = models[name]
            assert state == FAILED
            assert "does not open" in reason
        rows, _ = held_out("breast-cancer")
        stream = pair.stream()
        (reply,) = stream.ask([request("breast-cancer", rows[:1])])
        assert reply.reason == Reason.MODEL_NOT_READY
        stream.close()
        assert pair.inference.end() == 0
    finally:
        pair.end()
    spool = sqlite3.connect(pair.inference.data / "spool.db")
    bodies = [row[0] for row in spool.execute("SELECT body FROM spans ORDER BY seq")]
    spool.close()
    loads = [b for b in bodies if b"model.load" in b]
    assert sum(b"MODEL_NOT_READY" in b for b in loads) == 2
    assert sum(b"lung" in b for b in loads) == 1
    assert sum(b"service.start" in b for b in bodies) == 2


def test_without_keys_the_start_ends_with_one_line(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.keys.start()
    pair.inference.settings |= {"KEYS_ADDRESS": "127.0.0.1:9", "START_SECONDS": 1}
    try:
        assert pair.inference.launch().wait(30) == 1
        errors = [
            line
            for line in pair.inference.log.read_text().splitlines()
            if line.startswith("error: ")
        ]
        assert errors == ["error: no answer from the keys service in 1 s: is it running?"]
    finally:
        pair.end()


def test_a_strict_site_refuses_what_a_model_does_not_declare(tmp_path: Path) -> None:
    strict = Pair(tmp_path)
    strict.inference.settings = {**strict.inference.settings, "UNDECLARED_INPUTS": "refuse"}
    try:
        stream = strict.start().stream()
        rows, _ = held_out("breast-cancer")
        right = ModelInferRequest.FromString(request("breast-cancer", rows[:1]))
        more = ModelInferRequest()
        more.CopyFrom(right)
        more.inputs.add(name="ssn", datatype="BYTES", shape=[1])
        more.raw_input_contents.append(b"\x01\x00\x00\x00x")
        answered, refused = stream.ask([m.SerializeToString() for m in (right, more)])
        assert answered.code == 0
        assert (refused.reason, refused.field) == (Reason.INPUT_NAME, "inputs[1].name")
        stream.close()
    finally:
        strict.end()
