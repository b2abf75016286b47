"""What the inference service reads: requests of any caller, packages of any model owner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

import services
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.kit.errors import SealwardError
from services.inference.datatypes import DATATYPES
from services.inference.golden import GoldenError, parse_golden
from services.inference.manifest import Manifest, ManifestError, parse_manifest
from services.inference.modelfile import ModelFileError, check_model_file
from services.inference.operators import OPERATORS
from services.inference.package import PackageError, pack, read_package, unpack
from services.inference.tensors import Decoder
from tests.fuzz.harness import target
from tests.support.inference_models import make_manifest, manifest_dict
from tests.support.inference_requests import infer_request

_SHIPPED = Path(services.__path__[0], "inference", "shipped", "breast-cancer")
_FIELDS = [{"name": f"f{n}", "unit": "1", "minimum": -1.0, "maximum": 100.0} for n in range(3)]


@cache
def _manifest() -> Manifest:
    """One input of every datatype, with ranges where there can be one."""
    inputs: list[dict[str, Any]] = []
    for name in DATATYPES:
        spec: dict[str, Any] = {"name": name, "datatype": name, "shape": [-1, 3]}
        if name not in ("BOOL", "BYTES"):
            spec["fields"] = _FIELDS
        inputs.append(spec)
    inputs.append({"name": "open", "datatype": "FP32", "shape": [-1, -1, 2], "allow_nan": True})
    outputs = [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]
    return make_manifest(inputs, outputs, name="toy")


@cache
def _decoders() -> dict[str, Decoder]:
    """A decoder for each datatype alone, and the shipped model's."""
    found = {"shipped": Decoder(parse_manifest((_SHIPPED / "manifest.json").read_bytes()))}
    whole = json.loads(_manifest().canonical_json())
    for spec in whole["inputs"]:
        one = {**whole, "inputs": [spec]}
        found[spec["name"]] = Decoder(parse_manifest(json.dumps(one).encode()))
    return found


_VALUES: dict[str, list[Any]] = {"BYTES": [b"a", b"", "ü".encode()], "BOOL": [True, False, True]}


def _requests(*, raw: bool) -> list[bytes]:
    made = []
    for name, kind in DATATYPES.items():
        if raw or kind.contents:
            request = infer_request(
                _VALUES.get(name, [1, 2, 3]), shape=[1, 3], datatype=name, name=name, raw=raw
            )
            made.append(request.SerializeToString())
    return made


def _decode(data: bytes) -> None:
    request = ModelInferRequest.FromString(data)
    name = request.inputs[0].name if request.inputs else ""
    decoder = _decoders().get(name, _decoders()["shipped"])
    decoded = decoder.decode(request)
    for array in decoded.arrays:
        assert array.shape[0] == decoded.rows
        if array.dtype != object and array.dtype.kind == "f" and name != "open":
            # What is declared in bounds is in bounds, and finite.
            assert np.isfinite(array.astype(np.float64)).all()


@target(SealwardError, DecodeError, seeds=lambda: _requests(raw=True), rounds=600)
def oip_raw_request(data: bytes) -> None:
    """A request with raw contents."""
    _decode(data)


@target(SealwardError, DecodeError, seeds=lambda: _requests(raw=False), rounds=600)
def oip_typed_request(data: bytes) -> None:
    """A request with typed contents."""
    _decode(data)


def _manifests() -> Sequence[bytes]:
    toy = manifest_dict(
        [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        [{"name": "y", "datatype": "INT64", "shape": [-1], "unit": "1"}],
    )
    return [(_SHIPPED / "manifest.json").read_bytes(), json.dumps(toy).encode()]


@target(ManifestError, seeds=_manifests)
def manifest(data: bytes) -> None:
    """A manifest: one canonical form; an error says where, not what was there."""
    found = parse_manifest(data)
    assert parse_manifest(found.canonical_json().encode()) == found


def _self_tests() -> Sequence[bytes]:
    full = json.loads((_SHIPPED / "golden.json").read_bytes())
    full["cases"] = full["cases"][:1]
    return [json.dumps(full).encode()]


@target(GoldenError, seeds=_self_tests, rounds=150)
def golden_self_test(data: bytes) -> None:
    """A self-test of a model."""
    parse_golden(data, parse_manifest((_SHIPPED / "manifest.json").read_bytes()))


@cache
def _package() -> bytes:
    names = ("manifest.json", "golden.json", "card.md", "model.onnx")
    return pack({name: (_SHIPPED / name).read_bytes() for name in names})


@target(PackageError, seeds=lambda: [_package()], rounds=60)
def model_package(data: bytes) -> None:
    """A package: one form, and what is in it fits together."""
    files = unpack(data)
    assert pack(files) == data
    read_package(files)


def _model_files() -> list[bytes]:
    return [(_SHIPPED / "model.onnx").read_bytes()]


@target(ModelFileError, seeds=_model_files)
def model_file(data: bytes) -> None:
    """A model file. What is taken is, to ONNX's own parser, what was looked at."""
    check_model_file(data)
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        # ONNX Runtime refuses it as well.
        return
    assert not model.functions
    assert not model.training_info
    for node in model.graph.node:
        assert node.op_type in OPERATORS[node.domain]
        for attribute in node.attribute:
            assert not attribute.graphs
            assert not attribute.HasField("g")
            assert not attribute.t.external_data
    for tensor in model.graph.initializer:
        assert not tensor.external_data
        assert tensor.data_location == tensor.DEFAULT
