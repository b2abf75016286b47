"""Open Inference Protocol JSON to messages and back."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest

from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.cli.errors import CliError, Exit
from sealward.cli.oip_json import request_from_json, response_to_json


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5], **changes}


def request(*tensors: dict[str, Any], **rest: Any) -> Any:
    return request_from_json("m", json.dumps({"inputs": list(tensors), **rest}))


def test_a_request_is_carried_as_it_is_written() -> None:
    made = request(
        tensor(data=[[1.5, 2.5]], parameters={"a": 1}),
        tensor(name="y", datatype="BYTES", shape=[1], data=["é"]),
        id="7",
        parameters={"p": True, "q": 0.5, "r": "s"},
        outputs=[{"name": "z"}],
    )
    assert made.model_name == "m"
    assert made.id == "7"
    assert list(made.inputs[0].contents.fp32_contents) == [1.5, 2.5]
    assert list(made.inputs[0].shape) == [1, 2]
    assert made.inputs[0].parameters["a"].int64_param == 1
    assert made.inputs[1].contents.bytes_contents[0] == "é".encode()
    assert made.parameters["p"].bool_param is True
    assert made.parameters["q"].double_param == 0.5
    assert made.parameters["r"].string_param == "s"
    assert made.outputs[0].name == "z"


def test_what_the_service_must_refuse_reaches_it() -> None:
    made = request(tensor(shape=[3, 9], data=[math.nan]))
    assert list(made.inputs[0].shape) == [3, 9]
    assert math.isnan(made.inputs[0].contents.fp32_contents[0])


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{", "JSON"),
        ("[]", "inputs"),
        ("{}", "inputs"),
        ('{"inputs": [1]}', r"inputs\[0\]"),
        ('{"inputs": [{}]}', r"inputs\[0\]\.datatype"),
        ('{"inputs": [{"datatype": "FP32"}]}', r"inputs\[0\]\.shape"),
        ('{"inputs": [{"datatype": "FP32", "shape": [true]}]}', r"inputs\[0\]\.shape"),
        ('{"inputs": [{"datatype": "FP32", "shape": [1]}]}', r"inputs\[0\]\.data"),
        ('{"inputs": [{"datatype": "FP9", "shape": [1], "data": []}]}', "datatype"),
        ('{"inputs": [], "outputs": 3}', "outputs"),
        ('{"inputs": [], "outputs": [{}]}', r"outputs\[0\]\.name"),
        ('{"inputs": [], "id": 3}', "id"),
        ('{"inputs": [], "parameters": {"a": [1]}}', "parameters"),
    ],
)
def test_a_malformed_text_names_the_field(text: str, field: str) -> None:
    with pytest.raises(CliError, match=field) as caught:
        request_from_json("m", text)
    assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "UINT8"])
def test_a_value_is_never_quoted(datatype: str) -> None:
    with pytest.raises(CliError) as caught:
        request(tensor(datatype=datatype, data=["ZZCANARY"]))
    assert "ZZCANARY" not in caught.value.message


def test_raw_and_typed_answers_read_the_same() -> None:
    raw = ModelInferResponse(model_name="m", raw_output_contents=[struct.pack("<2f", 1.5, 2.5)])
    raw.outputs.add(name="o", datatype="FP32", shape=[1, 2])
    typed = ModelInferResponse(model_name="m")
    typed.outputs.add(name="o", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend(
        [1.5, 2.5]
    )
    assert response_to_json(raw) == response_to_json(typed)
    assert response_to_json(raw)["outputs"] == [
        {"name": "o", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}
    ]


def test_strings_and_parameters_of_an_answer() -> None:
    answer = ModelInferResponse(
        model_name="m", raw_output_contents=[struct.pack("<I2sI1s", 2, b"ab", 1, b"c")]
    )
    answer.outputs.add(name="o", datatype="BYTES", shape=[2])
    answer.parameters["sealward_model_digest"].string_param = "00"
    shown = response_to_json(answer)
    assert shown["outputs"][0]["data"] == ["ab", "c"]
    assert shown["parameters"] == {"sealward_model_digest": "00"}


@pytest.mark.parametrize("raw", [b"\x01", struct.pack("<I", 9)])
def test_a_truncated_answer_is_an_error(raw: bytes) -> None:
    for datatype in ("FP32", "BYTES"):
        answer = ModelInferResponse(model_name="m", raw_output_contents=[raw])
        answer.outputs.add(name="o", datatype=datatype, shape=[1])
        if datatype == "FP32" and len(raw) == 4:
            continue
        with pytest.raises(CliError):
            response_to_json(answer)
