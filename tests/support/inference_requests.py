"""Requests as callers write them, for any datatype."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from services.inference.datatypes import DATATYPES, float32_to_bfloat16


def raw_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    """Encode elements independently of the code under test."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(v)) + v for v in values)
    if datatype == "BF16":
        return float32_to_bfloat16(np.array(values, np.float32)).tobytes()
    codes = {
        "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B",
        "UINT16": "H", "UINT32": "I", "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d",
    }  # fmt: skip
    return struct.pack(f"<{len(values)}{codes[datatype]}", *values)


def infer_request(
    values: Sequence[Any],
    *,
    shape: Sequence[int],
    raw: bool = True,
    datatype: str = "FP32",
    name: str = "x",
    model: str = "toy",
    ident: str = "",
    outputs: Sequence[str] = (),
) -> ModelInferRequest:
    request = ModelInferRequest(model_name=model, id=ident)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw:
        request.raw_input_contents.append(raw_bytes(datatype, values))
    else:
        getattr(tensor.contents, DATATYPES[datatype].contents).extend(values)
    for output in outputs:
        request.outputs.add(name=output)
    return request


def output_of(response: ModelInferResponse, name: str) -> list[Any]:
    """The elements of an output, whichever form it came in."""
    place = [output.name for output in response.outputs].index(name)
    output = response.outputs[place]
    kind = DATATYPES[output.datatype]
    if not response.raw_output_contents:
        return list(getattr(output.contents, kind.contents))
    raw = response.raw_output_contents[place]
    if output.datatype != "BYTES":
        return list(np.frombuffer(raw, kind.numpy).tolist())
    found = []
    while raw:
        (length,) = struct.unpack("<I", raw[:4])
        found.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return found
