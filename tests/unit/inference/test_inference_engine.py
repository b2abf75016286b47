"""The engine: every datatype, the self-test, and the same bits as bare ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sealward.kit.reasons import Reason
from services.inference import runtime
from services.inference.datatypes import DATATYPES
from services.inference.engine import Engine, EngineError, RunError
from services.inference.golden import GoldenError, parse_golden
from services.inference.package import Package, PackageError
from services.inference.registry import Model, Registry, State
from services.inference.runtime import RuntimeSpec
from tests.support.inference_models import (
    doubling_package,
    identity_package,
    make_onnx,
    manifest_dict,
    opened_model,
    package_of,
    refusal,
)

VALUES: dict[str, Any] = {"BOOL": True, "BYTES": "grün", "FP16": 0.5, "BF16": 0.5, "FP32": 0.1,
                          "FP64": 0.1}  # fmt: skip


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_runs(datatype: str) -> None:
    model = opened_model(identity_package(datatype, VALUES.get(datatype, 7)))
    rng = np.random.default_rng(1)
    for rows in (1, 2, 7, 40):
        given: Any = rng.integers(0, 2, (rows, 2)).astype(DATATYPES[datatype].numpy)
        if datatype == "BYTES":
            given = np.array([["a", "ü"]] * rows, dtype=object)
        (got,) = model.engine.run((given,), rows)
        assert got.dtype == given.dtype
        assert got.tolist() == given.tolist()


def test_shipped_models_give_the_bits_of_bare_onnxruntime(
    opened: dict[str, Model], shipped: dict[str, Package]
) -> None:
    rng = np.random.default_rng(7)
    for name, model in opened.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        bare = onnxruntime.InferenceSession(
            shipped[name].onnx, sess_options=options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in model.manifest.outputs]
        high = np.array([f.maximum for f in model.manifest.inputs[0].fields])
        for rows in [1] * 50 + [2, 3, 8, 9, 64, 500]:
            given = (rng.random((rows, len(high))) * high).astype(np.float32)
            wanted = bare.run(names, {"measurements": given})
            got = model.engine.run((given,), rows)
            for one, other in zip(got, wanted, strict=True):
                assert one.dtype == other.dtype
                assert one.tobytes() == other.tobytes()


def test_answers_of_an_earlier_run_stay_what_they_were() -> None:
    model = opened_model(doubling_package())
    first = model.engine.run((np.full((1, 3), 1, np.float32),), 1)
    model.engine.run((np.full((1, 3), 5, np.float32),), 1)
    assert first[0].tolist() == [[2.0, 2.0, 2.0]]


def test_a_model_with_another_answer_fails_its_self_test(shipped: dict[str, Package]) -> None:
    for package in shipped.values():
        content = json.loads(package.golden.model_dump_json())
        output = content["cases"][3]["outputs"][-1]
        output["data"][0] += 1 if output["datatype"] == "INT64" else 0.01
        golden = parse_golden(json.dumps(content).encode(), package.manifest)
        engine = Engine(package.manifest, package.onnx, RuntimeSpec())
        engine.self_test(package.golden)
        with pytest.raises(EngineError, match=f"{content['cases'][3]['name']}: output .* differs"):
            engine.self_test(golden)


def test_one_failed_model_leaves_the_others(shipped: dict[str, Package]) -> None:
    registry = Registry(RuntimeSpec(), "ab" * 32)
    # A file of the right form whose one node takes what nobody gives.
    bad = package_of(make_onnx(
        [helper.make_node("Identity", ["z"], ["y"])],
        [("x", "FP32", [-1, 1])], [("y", "FP32", [-1, 1])],
    ), manifest_dict(
        [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
        [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}], name="bad",
    ), [{"name": "one",
         "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}],
         "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}],
    )  # fmt: skip
    for package in (bad, *shipped.values()):
        registry.open(package.manifest.name, "1", lambda p=package: p)  # type: ignore[misc]
    assert [(e.name, e.state) for e in registry.entries()] == [
        ("bad", State.FAILED),
        ("breast-cancer", State.READY),
        ("diabetes-progression", State.READY),
    ]
    assert registry.entries()[0].reason == "the model does not load (InvalidArgument)"
    assert registry.find("breast-cancer", "").manifest.version == "1"
    assert refusal(registry.find, "bad", "").reason is Reason.MODEL_NOT_READY
    for name, version in (("breast-cancer", "2"), ("none", ""), ("", "")):
        assert refusal(registry.find, name, version).reason is Reason.MODEL_UNKNOWN


def test_the_newest_version_is_by_number_and_older_ones_do_not_step_in() -> None:
    registry = Registry(RuntimeSpec(), "ab" * 32)
    for version in ("9", "10", "2.1"):
        package = doubling_package(version=version)
        registry.open("toy", version, lambda p=package: p)  # type: ignore[misc]
    assert registry.find("toy", "").manifest.version == "10"
    assert [entry.version for entry in registry.entries()] == ["2.1", "9", "10"]

    def damaged() -> Package:
        raise PackageError("damaged")

    registry.open("toy", "11", damaged)
    assert refusal(registry.find, "toy", "").reason is Reason.MODEL_NOT_READY
    assert registry.find("toy", "10").manifest.version == "10"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"inputs": [{"name": "q", "datatype": "FP32", "shape": [-1, 3]}]}, "inputs are not"),
        ({"inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 3]}]}, "another datatype"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}, "another shape"),
        ({"outputs": [{"name": "z", "datatype": "FP32", "shape": [-1, 3]}]}, "outputs are not"),
        ({"outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}]}, "another shape"),
    ],
)
def test_manifest_and_file_must_agree(change: dict[str, Any], names: str) -> None:
    good = doubling_package()
    manifest = type(good.manifest).model_validate_json(
        json.dumps({**json.loads(good.manifest.canonical_json()), **change})
    )
    with pytest.raises(EngineError, match=names):
        Engine(manifest, good.onnx, RuntimeSpec())


def test_a_failing_run_says_nothing_of_the_input() -> None:
    onnx_bytes = make_onnx(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", "INT64", (-1,))],
        [("y", "FP32", (-1,))],
        [helper.make_tensor("table", TensorProto.FLOAT, [2], [5.0, 6.0])],
    )
    manifest = manifest_dict(
        [{"name": "x", "datatype": "INT64", "shape": [-1]}],
        [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    )
    case = {
        "name": "one",
        "inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [6.0]}],
    }
    model = opened_model(package_of(onnx_bytes, manifest, [case]))
    with pytest.raises(RunError) as error:
        model.engine.run((np.array([987654]),), 1)
    assert "987654" not in str(error.value)
    assert error.value.__cause__ is None
    assert model.engine.run((np.array([0]),), 1)[0].tolist() == [5.0]


@pytest.mark.parametrize("width", [-1, 1])
def test_outputs_must_have_their_declared_shape(width: int) -> None:
    onnx_bytes = make_onnx(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [("x", "FP32", (-1,))],
        [("y", "INT64", (1, -1))],
    )
    manifest = manifest_dict(
        [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        [{"name": "y", "datatype": "INT64", "shape": [1, width]}],
    )
    case = {
        "name": "one",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [0.0, 3.0]}],
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [1, 1], "data": [1]}],
    }
    model = opened_model(package_of(onnx_bytes, manifest, [case]))
    for rows in (3, 20):
        given = np.zeros(rows, np.float32)
        given[[0, 2]] = 1.0
        if width == -1:
            assert model.engine.run((given,), rows)[0].tolist() == [[0, 2]]
        else:
            with pytest.raises(RunError):
                model.engine.run((given,), rows)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"cases": []}, "cases"),
        ({"absolute_tolerance": 2.0}, "absolute_tolerance"),
        ({"extra": 1}, "extra"),
    ],
)
def test_self_tests_are_strict(change: dict[str, Any], names: str) -> None:
    package = doubling_package()
    content = {**json.loads(package.golden.model_dump_json()), **change}
    with pytest.raises(GoldenError, match=names):
        parse_golden(json.dumps(content).encode(), package.manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1, 2]},
        {"shape": [1, 0]},
        {"data": [1.0, 2.0]},
        {"data": [1.0, 2.0, True]},
        {"data": [1.0, 2.0, "3"]},
        {"datatype": "FP64"},
        {"name": "z"},
    ],
)
def test_self_test_tensors_fit_the_manifest(change: dict[str, Any]) -> None:
    package = doubling_package()
    content = json.loads(package.golden.model_dump_json())
    content["cases"][0]["inputs"][0].update(change)
    with pytest.raises(GoldenError):
        parse_golden(json.dumps(content).encode(), package.manifest)


def test_the_runtime_digest_names_what_changes_bits(tmp_path: Path) -> None:
    cpu = runtime.cpu_class()
    one = RuntimeSpec().digest(cpu)
    assert one == RuntimeSpec().digest(dict(reversed(cpu.items())))
    assert len(one) == 64
    assert one != RuntimeSpec(threads=2).digest(cpu)
    assert one != RuntimeSpec(entries=()).digest(cpu)
    assert one != RuntimeSpec().digest({**cpu, "instructions": "avx512f"})
    info = tmp_path / "cpuinfo"
    info.write_text(
        "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: EPYC\n"
        "cpu MHz\t\t: 2445.4\nflags\t\t: fpu avx2 fma rdrand\n\nvendor_id\t: Other\n"
    )
    found = runtime.cpu_class(info)
    del found["architecture"]
    assert found == {"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "1",
                     "instructions": "avx2 fma"}  # fmt: skip
    assert set(runtime.cpu_class(tmp_path / "none")) == {"architecture"}
