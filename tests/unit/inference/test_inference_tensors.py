"""Requests to arrays: what passes, what is refused, and that no refusal repeats a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.kit.reasons import Reason
from services.inference.datatypes import (
    DATATYPES,
    bfloat16_to_float32,
    float32_to_bfloat16,
)
from services.inference.registry import Model
from services.inference.tensors import Decoder
from tests.support.inference_models import make_manifest, refusal
from tests.support.inference_requests import infer_request, raw_bytes

Y = {"name": "y", "datatype": "FP32", "shape": [-1, 1]}
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "FP16": [-1.5, 65504.0],
    "BF16": [-1.5, 256.0],
    "FP32": [-0.0, 3.4028234663852886e38],
    "FP64": [5e-324, -1.7976931348623157e308],
    "BYTES": [b"", "ü€".encode()],
}


def decoder(*inputs: dict[str, Any], max_rows: int = 64) -> Decoder:
    return Decoder(make_manifest(inputs, [Y], max_rows=max_rows))


def columns(datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    fields = [
        {"name": "age", "unit": "a", "minimum": 0.0, "maximum": 120.0},
        {"name": "mean radius", "unit": "mm", "minimum": 0.5, "maximum": 9.5},
    ]
    return {"name": "x", "datatype": datatype, "shape": [-1, 2], "fields": fields, **more}


@pytest.mark.parametrize("datatype", sorted(VALUES))
def test_every_datatype_raw_and_typed(datatype: str) -> None:
    model = decoder({"name": "x", "datatype": datatype, "shape": [-1, 2]})
    values = VALUES[datatype]
    decoded = model.decode(infer_request(values * 2, shape=[2, 2], datatype=datatype))
    (array,) = decoded.arrays
    assert decoded.rows == 2
    assert decoded.raw
    assert array.shape == (2, 2)
    got: Any = bfloat16_to_float32(array) if datatype == "BF16" else array
    wanted = [v.decode() for v in values] if datatype == "BYTES" else values
    assert got.tolist() == [wanted, wanted]
    if not DATATYPES[datatype].contents:
        return
    typed = model.decode(infer_request(values * 2, shape=[2, 2], datatype=datatype, raw=False))
    assert not typed.raw
    assert typed.arrays[0].dtype == array.dtype
    assert typed.arrays[0].tolist() == array.tolist()


def test_raw_bytes_are_not_copied() -> None:
    for rows in (1, 2):
        request = infer_request([1.0, 2.0] * rows, shape=[rows, 2])
        (array,) = decoder(columns()).decode(request).arrays
        assert not array.flags.owndata


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_raw_only(datatype: str) -> None:
    request = infer_request([1.0, 2.0], shape=[1, 2], raw=False)
    request.inputs[0].datatype = datatype
    error = refusal(decoder(columns(datatype)).decode, request)
    assert error.reason is Reason.INPUT_DATATYPE
    assert error.field == "inputs[x].contents"


Change = Callable[[ModelInferRequest], object]


def twice(request: ModelInferRequest) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


REFUSALS: list[tuple[str, Change, Reason, str]] = [
    (
        "unknown input",
        lambda r: setattr(r.inputs[0], "name", "z"),
        Reason.INPUT_NAME,
        "inputs[0].name",
    ),
    ("no input", lambda r: (r.inputs.pop(), r.raw_input_contents.pop()), Reason.INPUT_NAME,
     "inputs[x]"),
    ("twice", twice, Reason.INPUT_NAME, "inputs[x]"),
    ("datatype", lambda r: setattr(r.inputs[0], "datatype", "FP64"), Reason.INPUT_DATATYPE,
     "inputs[x].datatype"),
    ("no datatype", lambda r: r.inputs[0].ClearField("datatype"), Reason.INPUT_DATATYPE,
     "inputs[x].datatype"),
    ("fewer dimensions", lambda r: r.inputs[0].shape.pop(), Reason.INPUT_SHAPE, "inputs[x].shape"),
    ("no shape", lambda r: r.inputs[0].ClearField("shape"), Reason.INPUT_SHAPE, "inputs[x].shape"),
    ("other width", lambda r: r.inputs[0].shape.__setitem__(1, 3), Reason.INPUT_SHAPE,
     "inputs[x].shape"),
    ("no rows", lambda r: r.inputs[0].shape.__setitem__(0, 0), Reason.INPUT_SHAPE,
     "inputs[x].shape"),
    ("negative", lambda r: r.inputs[0].shape.__setitem__(0, -1), Reason.INPUT_SHAPE,
     "inputs[x].shape"),
    ("2^63 rows", lambda r: r.inputs[0].shape.__setitem__(0, 2**63 - 1), Reason.INPUT_SHAPE,
     "inputs[x].shape"),
    ("-2^63 rows", lambda r: r.inputs[0].shape.__setitem__(0, -(2**63)), Reason.INPUT_SHAPE,
     "inputs[x].shape"),
    ("too many rows", lambda r: r.inputs[0].shape.__setitem__(0, 65), Reason.INPUT_SHAPE,
     "inputs[x].shape"),
    ("bytes for fewer rows", lambda r: r.inputs[0].shape.__setitem__(0, 2), Reason.INPUT_SHAPE,
     "raw_input_contents[x]"),
    ("a byte too many", lambda r: r.raw_input_contents.__setitem__(0, b"\0" * 9),
     Reason.INPUT_SHAPE, "raw_input_contents[x]"),
    ("no bytes", lambda r: r.raw_input_contents.__setitem__(0, b""), Reason.INPUT_SHAPE,
     "raw_input_contents[x]"),
    ("raw and typed", lambda r: r.inputs[0].contents.fp32_contents.append(1.0),
     Reason.FIELD_INVALID, "inputs[x].contents"),
    ("raw and empty contents", lambda r: r.inputs[0].contents.SetInParent(),
     Reason.FIELD_INVALID, "inputs[x].contents"),
    ("surplus raw", lambda r: r.raw_input_contents.append(b""), Reason.FIELD_INVALID,
     "raw_input_contents"),
    ("neither", lambda r: r.raw_input_contents.pop(), Reason.INPUT_SHAPE, "inputs[x].contents"),
    ("unknown output", lambda r: r.outputs.add(name="z"), Reason.OUTPUT_NAME, "outputs[0].name"),
    ("output twice", lambda r: (r.outputs.add(name="y"), r.outputs.add(name="y")),
     Reason.OUTPUT_NAME, "outputs[1].name"),
    ("shared memory", lambda r: r.inputs[0].parameters["shared_memory_region"].MergeFromString(
        b"\x1a\x01a"), Reason.NOT_SUPPORTED, "inputs[x].parameters[shared_memory_region]"),
    ("sequence", lambda r: r.parameters["sequence_id"].MergeFromString(b"\x10\x05"),
     Reason.NOT_SUPPORTED, "parameters[sequence_id]"),
    ("classification", lambda r: r.outputs.add(name="y").parameters[
        "classification"].MergeFromString(b"\x10\x05"),
     Reason.NOT_SUPPORTED, "outputs[0].parameters[classification]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason", "field"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_refusals_name_the_field(change: Change, reason: Reason, field: str) -> None:
    request = infer_request([50.0, 5.0], shape=[1, 2])
    assert decoder(columns()).decode(request).rows == 1
    change(request)
    error = refusal(decoder(columns()).decode, request)
    assert (error.reason, error.field) == (reason, field)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (math.nan, Reason.INPUT_NOT_FINITE),
        (math.inf, Reason.INPUT_NOT_FINITE),
        (-math.inf, Reason.INPUT_NOT_FINITE),
        (9.75, Reason.INPUT_RANGE),
        (0.25, Reason.INPUT_RANGE),
    ],
)
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("rows", [1, 3])
def test_values_are_checked_by_field(wrong: float, kind: Reason, datatype: str, rows: int) -> None:
    values = [50.0, 5.0] * rows
    model = decoder(columns(datatype))
    model.decode(infer_request(values, shape=[rows, 2], datatype=datatype))
    values[-1] = wrong
    error = refusal(model.decode, infer_request(values, shape=[rows, 2], datatype=datatype))
    assert error.reason is kind
    assert error.field == "inputs[x].fields[mean radius]"
    assert f"(row {rows - 1})" in error.message
    assert math.isinf(wrong) or str(wrong) not in error.message
    if kind is Reason.INPUT_RANGE:
        assert "from 0.5 to 9.5 mm" in error.message


def test_bounds_are_inclusive_in_the_datatypes_own_precision() -> None:
    fields = [{"name": "a", "unit": "1", "minimum": 0.1, "maximum": 0.3}]
    spec = {"name": "x", "datatype": "FP32", "shape": [-1, 1], "fields": fields}
    model = decoder(spec)
    for value in (0.1, 0.3, 0.2):
        model.decode(infer_request([value], shape=[1, 1]))
    for value in (np.nextafter(np.float32(0.1), np.float32(0)), 0.31):
        error = refusal(model.decode, infer_request([float(value)], shape=[1, 1]))
        assert error.reason is Reason.INPUT_RANGE


def test_nan_passes_where_it_is_declared_and_infinity_never() -> None:
    model = decoder(columns(allow_nan=True))
    (array,) = model.decode(infer_request([math.nan, 5.0], shape=[1, 2])).arrays
    assert math.isnan(array[0, 0])
    for bad, reason in ((math.inf, Reason.INPUT_NOT_FINITE), (200.0, Reason.INPUT_RANGE)):
        error = refusal(model.decode, infer_request([math.nan, 5.0, bad, 5.0], shape=[2, 2]))
        assert (error.reason, error.field) == (reason, "inputs[x].fields[age]")


def test_an_input_without_fields_is_checked_for_being_finite() -> None:
    model = decoder({"name": "x", "datatype": "FP32", "shape": [-1, 2, 2]})
    model.decode(infer_request([3.4e38] * 4, shape=[1, 2, 2]))
    error = refusal(model.decode, infer_request([1, 2, math.nan, 4], shape=[1, 2, 2]))
    assert (error.reason, error.field) == (Reason.INPUT_NOT_FINITE, "inputs[x]")


def test_integer_ranges_and_widths() -> None:
    model = decoder(columns("INT8"))
    model.decode(infer_request([120, 1], shape=[1, 2], datatype="INT8"))
    # 0.5 to 9.5 leaves the whole numbers 1 to 9.
    for values in ([121, 5], [-1, 5], [5, 0], [5, 10]):
        error = refusal(model.decode, infer_request(values, shape=[1, 2], datatype="INT8"))
        assert error.reason is Reason.INPUT_RANGE
    wide = infer_request([128, 5], shape=[1, 2], datatype="INT8", raw=False)
    error = refusal(model.decode, wide)
    assert (error.reason, error.field) == (Reason.INPUT_RANGE, "inputs[x]")


def test_booleans_are_zero_or_one() -> None:
    model = decoder({"name": "x", "datatype": "BOOL", "shape": [-1, 3]})
    request = infer_request([True, False, True], shape=[1, 3], datatype="BOOL")
    model.decode(request)
    request.raw_input_contents[0] = b"\x01\x02\x00"
    assert refusal(model.decode, request).reason is Reason.INPUT_RANGE


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01\x00\x00",
        b"\x01\x00\x00\x00",
        b"\xff\xff\xff\xffa",
        b"\x01\x00\x00\x00a",
        raw_bytes("BYTES", [b"a", b"b", b"c"]),
        raw_bytes("BYTES", [b"a", b"b"]) + b"\x00",
    ],
)
def test_string_elements_fill_the_shape_exactly(raw: bytes) -> None:
    model = decoder({"name": "x", "datatype": "BYTES", "shape": [-1, 2]})
    request = infer_request([b"a", b"b"], shape=[1, 2], datatype="BYTES")
    model.decode(request)
    request.raw_input_contents[0] = raw
    error = refusal(model.decode, request)
    assert (error.reason, error.field) == (Reason.INPUT_SHAPE, "raw_input_contents[x]")


def test_strings_are_utf8_and_bounded() -> None:
    model = decoder({"name": "x", "datatype": "BYTES", "shape": [-1, 1], "max_item_bytes": 4})
    for raw in (True, False):
        model.decode(infer_request([b"abcd"], shape=[1, 1], datatype="BYTES", raw=raw))
        for bad in (b"abcde", b"\xff"):
            request = infer_request([bad], shape=[1, 1], datatype="BYTES", raw=raw)
            assert refusal(model.decode, request).reason is Reason.INPUT_RANGE


def test_shape_bombs_allocate_nothing() -> None:
    huge = 2**63 - 1
    for datatype in ("FP32", "BYTES"):
        model = decoder({"name": "x", "datatype": datatype, "shape": [-1, -1, -1]})
        for raw in (True, False):
            values: list[Any] = [b"a"] if datatype == "BYTES" else [1.0]
            request = infer_request(values, shape=[1, huge, huge], datatype=datatype, raw=raw)
            assert refusal(model.decode, request).reason is Reason.INPUT_SHAPE


def test_the_wrong_typed_field_is_refused() -> None:
    request = infer_request([1.0, 2.0], shape=[1, 2], raw=False)
    request.inputs[0].contents.int_contents.append(1)
    error = refusal(decoder(columns()).decode, request)
    assert (error.reason, error.field) == (Reason.INPUT_DATATYPE, "inputs[x].contents")


def test_several_inputs_come_in_any_order_and_agree_on_rows() -> None:
    model = decoder(
        {"name": "a", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "b", "datatype": "INT64", "shape": [-1]},
        {"name": "c", "datatype": "FP32", "shape": [2]},
    )
    request = infer_request([7, 8], shape=[2], datatype="INT64", name="b")
    request.MergeFrom(infer_request([1.0, 2.0], shape=[2], name="c"))
    request.MergeFrom(infer_request([3.0, 4.0], shape=[2, 1], name="a"))
    decoded = model.decode(request)
    assert decoded.rows == 2
    assert [a.ravel().tolist() for a in decoded.arrays] == [[3, 4], [7, 8], [1, 2]]
    del request.inputs[0], request.raw_input_contents[0]
    assert refusal(model.decode, request).field == "inputs[b]"
    request.MergeFrom(infer_request([7], shape=[1], datatype="INT64", name="b"))
    error = refusal(model.decode, request)
    assert error.reason is Reason.INPUT_SHAPE
    assert "same number of rows" in error.message


def test_outputs_are_chosen_in_the_callers_order(opened: dict[str, Model]) -> None:
    model = opened["breast-cancer"]
    request = infer_request([0.01] * 30, shape=[1, 30], name="measurements")
    assert model.decoder.decode(request).outputs == (0, 1)
    for chosen, places in ((["label"], (1,)), (["label", "malignant_probability"], (1, 0))):
        request = infer_request([0.01] * 30, shape=[1, 30], name="measurements", outputs=chosen)
        assert model.decoder.decode(request).outputs == places


def test_refusals_repeat_nothing_that_was_sent() -> None:
    canary = "canary-41c7"
    model = decoder(columns())
    for change in (
        lambda r: setattr(r.inputs[0], "name", canary),
        lambda r: setattr(r.inputs[0], "datatype", canary),
        lambda r: r.outputs.add(name=canary),
        lambda r: r.inputs[0].shape.__setitem__(0, 987654321),
        lambda r: r.raw_input_contents.__setitem__(0, raw_bytes("FP32", [9876.5, 5.0])),
    ):
        request = infer_request([50.0, 5.0], shape=[1, 2])
        change(request)
        error = refusal(model.decode, request)
        for part in (canary, "9876"):
            assert part not in f"{error.message}{error.field}{error}"


def test_bfloat16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F80C000, 0x7F800000, 0x7FC00001], np.uint32)
    got = float32_to_bfloat16(bits.view(np.float32))
    assert [hex(v) for v in got] == ["0x3f80", "0x3f82", "0x3f81", "0x7f80", "0x7fc0"]
