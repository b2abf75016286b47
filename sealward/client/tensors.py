"""Arrays to Open Inference Protocol messages and back.

The stubs of the protocol are imported when they are first needed: two copies of them cannot live in
one process, and `attach` serves programs that bring their own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sealward.client.errors import WrongReceiptError

Array = NDArray[Any]

# Parameters of an answer.
_WITHHELD, _DROPPED = "sealward_outputs_withheld", "sealward_inputs_dropped"

_DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in _DATATYPES.items()}
_TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def datatype_of(array: Array) -> str:
    """Return the protocol's name of an array's type; raises TypeError if it has none."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    name = _NAMES.get((array.dtype.kind, array.dtype.itemsize))
    if name is None:
        raise TypeError(f"the protocol has no datatype for {array.dtype}")
    return name


def as_declared(value: ArrayLike, datatype: str) -> Array:
    """Return `value` as an array of the declared datatype, where numpy's same-kind rule allows.

    A float64 array becomes FP32 for a model that declares it; a value of another kind is left as it
    is, for the server to refuse and record.
    """
    array = np.asarray(value)
    declared = _DATATYPES.get(datatype)
    if declared is not None and np.can_cast(array.dtype, declared, "same_kind"):
        return array.astype(declared, copy=False)
    return array


def encode_request(
    model: str,
    version: str,
    request_id: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Iterable[str] | None,
) -> bytes:
    """Return a serialised ModelInferRequest with raw contents: the bytes to be sent and digested.

    Raises TypeError for an array without datatype.
    """
    from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest

    request = ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in inputs.items():
        array = np.asarray(value)
        datatype = datatype_of(array)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(_raw(array, datatype))
    for name in outputs or ():
        request.outputs.add(name=name)
    return request.SerializeToString()


def decode_response(data: bytes) -> tuple[str, str, str, dict[str, Array]]:
    """Return (model name, version, id, outputs) of a serialised ModelInferResponse.

    Raises WrongReceiptError when the message is out of form: its receipt may hold, but nothing can
    be read from it.
    """
    from google.protobuf.message import DecodeError

    from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse

    try:
        response = ModelInferResponse.FromString(data)
        raw = response.raw_output_contents
        if raw and len(raw) != len(response.outputs):
            raise ValueError("raw contents do not match the outputs")
        outputs = {
            output.name: _array(output.datatype, list(output.shape), raw[at])
            if raw
            else _typed(output)
            for at, output in enumerate(response.outputs)
        }
    except (DecodeError, ValueError, OverflowError, KeyError, struct.error) as error:
        raise WrongReceiptError("the answer is not a well-formed message") from error
    return response.model_name, response.model_version, response.id, outputs


def statements(data: bytes) -> tuple[tuple[str, ...], int]:
    """Return what a well-formed answer says of itself: outputs left out, inputs dropped."""
    if _WITHHELD.encode() not in data and _DROPPED.encode() not in data:
        return (), 0
    from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse

    said = ModelInferResponse.FromString(data).parameters
    names = said[_WITHHELD].string_param if _WITHHELD in said else ""
    dropped = said[_DROPPED].int64_param if _DROPPED in said else 0
    return tuple(filter(None, names.split(","))), dropped


def _raw(array: Array, datatype: str) -> bytes:
    if datatype != "BYTES":
        return np.ascontiguousarray(array, _DATATYPES[datatype]).tobytes()
    parts = []
    for item in array.ravel().tolist():
        data = item.encode() if isinstance(item, str) else bytes(item)
        parts.append(struct.pack("<I", len(data)) + data)
    return b"".join(parts)


def _array(datatype: str, shape: list[int], raw: bytes) -> Array:
    if datatype != "BYTES":
        return np.frombuffer(raw, _DATATYPES[datatype]).reshape(shape).copy()
    items: list[bytes] = []
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + length > len(raw):
            raise ValueError("truncated string")
        items.append(raw[at : at + length])
        at += length
    return _objects(items, shape)


def _typed(output: Any) -> Array:
    values = list(getattr(output.contents, _TYPED[output.datatype]))
    if output.datatype == "BYTES":
        return _objects(values, list(output.shape))
    return np.array(values, _DATATYPES[output.datatype]).reshape(list(output.shape))


def _objects(items: list[bytes], shape: list[int]) -> Array:
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array.reshape(shape)
