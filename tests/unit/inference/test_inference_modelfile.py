"""What a model file may be: decided without ONNX Runtime, and as ONNX's own parser reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import services
from services.inference.modelfile import MAX_DIMENSIONS, ModelFileError, check_model_file
from services.inference.operators import OPERATORS
from services.inference.package import PackageError
from tests.support.inference_models import make_onnx, manifest_dict, package_of

SHIPPED = sorted(Path(services.__path__[0], "inference", "shipped").glob("*/model.onnx"))
TENSORS = [("x", "FP32", [-1, 2])], [("y", "FP32", [-1, 2])]
WEIGHT = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])


def model(change: Callable[[onnx.ModelProto], object] = lambda _model: None) -> bytes:
    found = onnx.ModelProto()
    found.ParseFromString(
        make_onnx([helper.make_node("Mul", ["x", "w"], ["y"])], *TENSORS, [WEIGHT])
    )
    change(found)
    return found.SerializeToString()


def refused(onnx_bytes: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        check_model_file(onnx_bytes)
    return str(caught.value)


def test_an_ordinary_model_is_taken() -> None:
    check_model_file(model())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_the_shipped_models_are_taken(path: Path) -> None:
    check_model_file(path.read_bytes())


@pytest.mark.parametrize("data", [b"", b"\0", b"no model", b"\x3a\x00", model()[:-3]])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    refused(data)


def test_data_in_another_file_is_refused_wherever_it_is_named() -> None:
    def external(tensor: onnx.TensorProto) -> None:
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/shadow")

    def named_only(tensor: onnx.TensorProto) -> None:
        tensor.external_data.add(key="location", value="../weights")

    for change in (external, named_only):

        def in_initializer(m: onnx.ModelProto, change: Callable[..., None] = change) -> None:
            change(m.graph.initializer[0])

        text = refused(model(in_initializer))
        assert "file of its own" in text
        assert "shadow" not in text

        def in_attribute(m: onnx.ModelProto, change: Callable[..., None] = change) -> None:
            node = helper.make_node("Constant", [], ["c"], value=WEIGHT)
            change(node.attribute[0].t)
            m.graph.node.append(node)

        assert "node 2" in refused(model(in_attribute))


def test_operators_of_somebody_else_and_those_without_bounds_are_refused() -> None:
    def custom(m: onnx.ModelProto) -> None:
        m.graph.node[0].domain = "acme.kernels"

    def imported(m: onnx.ModelProto) -> None:
        m.opset_import.append(helper.make_opsetid("acme.kernels", 1))

    def loop(m: onnx.ModelProto) -> None:
        m.graph.node[0].op_type = "Loop"

    def drawn(m: onnx.ModelProto) -> None:
        m.graph.node[0].op_type = "RandomNormalLike"

    def odd(m: onnx.ModelProto) -> None:
        m.graph.node[0].op_type = "Mul\n\x1b[31m"

    assert "acme.kernels" in refused(model(custom))
    assert "acme.kernels" in refused(model(imported))
    assert "the operator Loop is not" in refused(model(loop))
    assert "RandomNormalLike" in refused(model(drawn))
    assert "without a proper name" in refused(model(odd))


def test_graphs_inside_functions_training_and_sparse_data_are_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])

    def control(m: onnx.ModelProto) -> None:
        m.graph.node[0].attribute.append(helper.make_attribute("body", inner))

    def functions(m: onnx.ModelProto) -> None:
        m.functions.add(name="f", domain="")

    def training(m: onnx.ModelProto) -> None:
        m.training_info.add()

    def sparse(m: onnx.ModelProto) -> None:
        m.graph.sparse_initializer.add()

    wanted = {
        control: "control flow", functions: "functions", training: "training", sparse: "sparse",
    }  # fmt: skip
    for change, word in wanted.items():
        assert word in refused(model(change))


@pytest.mark.parametrize("dims", [[1 << 40], [1 << 31, 1 << 31], [-1], [1] * (MAX_DIMENSIONS + 1)])
def test_a_tensor_is_no_larger_than_its_data(dims: list[int]) -> None:
    def bomb(m: onnx.ModelProto) -> None:
        del m.graph.initializer[0].dims[:]
        m.graph.initializer[0].dims.extend(dims)

    assert "initializer 1" in refused(model(bomb))


def test_packed_elements_and_empty_tensors_are_no_bombs() -> None:
    def small(m: onnx.ModelProto) -> None:
        m.graph.initializer.append(
            TensorProto(name="i4", data_type=TensorProto.INT4, dims=[64], raw_data=bytes(32))
        )
        m.graph.initializer.append(
            TensorProto(name="none", data_type=TensorProto.FLOAT, dims=[0, 1 << 40])
        )

    check_model_file(model(small))


def test_a_tensor_that_a_parser_would_merge_is_refused() -> None:
    """Two halves that are small each, and 10,000 times 10,000 together."""
    half = TensorProto(data_type=TensorProto.FLOAT, dims=[10_000], raw_data=bytes(40_000))
    field = b"\x2a" + _varint(len(half.SerializeToString())) + half.SerializeToString()
    attribute = b"\x0a\x05value" + field + field
    node = b"\x12\x01c" + b"\x22\x08Constant" + b"\x2a" + _varint(len(attribute)) + attribute
    graph = b"\x0a" + _varint(len(node)) + node
    data = b"\x42\x02\x10\x12" + b"\x3a" + _varint(len(graph)) + graph
    merged = onnx.ModelProto.FromString(data).graph.node[0].attribute[0].t
    assert list(merged.dims) == [10_000, 10_000]
    assert "twice" in refused(data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_every_listed_operator_is_one_that_onnx_has() -> None:
    known = {(s.domain, s.name) for s in onnx.defs.get_all_schemas()}
    for domain in ("", "ai.onnx.ml"):
        assert {(domain, name) for name in OPERATORS[domain]} <= known


def test_a_package_says_what_is_wrong_with_its_model() -> None:
    def external(m: onnx.ModelProto) -> None:
        m.graph.initializer[0].data_location = TensorProto.EXTERNAL

    inputs, outputs = (
        [{"name": n, "datatype": d, "shape": s} for n, d, s in side] for side in TENSORS
    )
    value = {"datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    case = {
        "name": "one", "inputs": [{"name": "x", **value}], "outputs": [{"name": "y", **value}],
    }  # fmt: skip
    with pytest.raises(PackageError, match=r"^model\.onnx: initializer 1: the data is in a file"):
        package_of(model(external), manifest_dict(inputs, outputs), [case])
