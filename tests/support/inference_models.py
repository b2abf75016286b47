"""Small real ONNX models, made by hand, in packages that load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from sealward.kit.errors import SealwardError
from services.inference.manifest import Manifest, parse_manifest
from services.inference.package import Package, read_package
from services.inference.registry import Model, Registry, open_model
from services.inference.runtime import RuntimeSpec

Tensor = tuple[str, str, Sequence[int]]

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL, "FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "BYTES": TensorProto.STRING,
    "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64,
}  # fmt: skip


def manifest_dict(
    inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "toy",
        "version": "1",
        "digest": "00" * 32,
        "summary": "a toy",
        "inputs": list(inputs),
        "outputs": list(outputs),
        "deterministic": "strict",
        "max_rows": 64,
        "default_timeout_ms": 1000,
        "data": {"category": "test", "origin": "test", "source": "none", "licence": "none"},
        "regulatory": {"status": "not-a-medical-device", "jurisdiction": "none", "basis": "test"},
        "protected_inputs": [],
        "changelog": ["1: first"],
        **more,
    }


def make_manifest(
    inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], **more: Any
) -> Manifest:
    return parse_manifest(json.dumps(manifest_dict(inputs, outputs, **more)).encode())


def make_onnx(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    initializers: Sequence[onnx.TensorProto] = (),
) -> bytes:
    def infos(tensors: Sequence[Tensor]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                name, ONNX_TYPES[datatype], [None if size == -1 else size for size in shape]
            )
            for name, datatype, shape in tensors
        ]

    graph = helper.make_graph(nodes, "toy", infos(inputs), infos(outputs), list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    raw: bytes = model.SerializeToString()
    return raw


def package_of(onnx_bytes: bytes, manifest: dict[str, Any], cases: list[Any]) -> Package:
    manifest = {**manifest, "digest": hashlib.sha256(onnx_bytes).hexdigest()}
    golden = {"absolute_tolerance": 1e-6, "relative_tolerance": 1e-6, "cases": cases}
    return read_package(
        {
            "manifest.json": json.dumps(manifest).encode(),
            "golden.json": json.dumps(golden).encode(),
            "card.md": b"# toy\n",
            "model.onnx": onnx_bytes,
        }
    )


def identity_package(datatype: str, value: Any, shape: Sequence[int] = (-1, 2)) -> Package:
    """A model that answers its input, of any datatype."""
    io_shape = list(shape)
    onnx_bytes = make_onnx(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", datatype, io_shape)],
        [("y", datatype, io_shape)],
    )
    manifest = manifest_dict(
        [{"name": "x", "datatype": datatype, "shape": io_shape}],
        [{"name": "y", "datatype": datatype, "shape": io_shape}],
    )
    size = [1 if s == -1 else s for s in io_shape]
    count = 1
    for s in size:
        count *= s
    case = {
        "name": "one",
        "inputs": [{"name": "x", "datatype": datatype, "shape": size, "data": [value] * count}],
        "outputs": [{"name": "y", "datatype": datatype, "shape": size, "data": [value] * count}],
    }
    return package_of(onnx_bytes, manifest, [case])


def doubling_package(**more: Any) -> Package:
    """A model y = x + x over three columns, with names, ranges and units."""
    onnx_bytes = make_onnx(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", "FP32", (-1, 3))],
        [("y", "FP32", (-1, 3))],
    )
    fields = [
        {"name": name, "unit": "1", "minimum": 0.0, "maximum": 10.0} for name in ("a", "b", "c d")
    ]
    manifest = manifest_dict(
        [{"name": "x", "datatype": "FP32", "shape": [-1, 3], "fields": fields}],
        [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        **more,
    )
    case = {
        "name": "one",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]}],
    }
    return package_of(onnx_bytes, manifest, [case])


def opened_model(package: Package) -> Model:
    return open_model(package, RuntimeSpec(), "ab" * 32)


def registry_of(*packages: Package) -> Registry:
    registry = Registry(RuntimeSpec(), "ab" * 32)
    for package in packages:
        entry = registry.open(package.manifest.name, package.manifest.version, _giver(package))
        assert entry.model is not None, entry.reason
    return registry


def _giver(package: Package) -> Callable[[], Package]:
    return lambda: package


def refusal(action: Any, *args: Any) -> SealwardError:
    """Return the SealwardError that a call raises."""
    try:
        action(*args)
    except SealwardError as error:
        return error
    raise AssertionError("nothing was refused")
