"""Open Inference Protocol v2 JSON (its REST tensors) to and from the gRPC messages.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
A request is carried as it is written, wrong shapes and datatypes included: the service refuses and
records them. Only what has no gRPC form is refused here. Messages name fields, never values.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sealward.cli.errors import CliError, usage

if TYPE_CHECKING:
    from sealward.api.oip.v2.open_inference_pb2 import (
        InferParameter,
        ModelInferRequest,
        ModelInferResponse,
    )

_CONTENTS = {
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
_FORMATS = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B",
    "UINT16": "H", "UINT32": "I", "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


def request_from_json(model: str, text: str, version: str = "") -> ModelInferRequest:
    """Return the request that a JSON text describes; raise CliError naming the field at fault."""
    from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest

    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise usage("the input is not JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
        raise usage("the input has no list `inputs`", "see the Open Inference Protocol's REST form")
    request = ModelInferRequest(
        model_name=model, model_version=version, id=_text(content, "id", "id", "")
    )
    _parameters(content.get("parameters"), request.parameters, "parameters")
    for at, tensor in enumerate(content["inputs"]):
        _input(request, tensor, f"inputs[{at}]")
    outputs = content.get("outputs", [])
    if not isinstance(outputs, list):
        raise usage("outputs must be a list")
    for at, output in enumerate(outputs):
        if not isinstance(output, dict):
            raise usage(f"outputs[{at}] must be an object")
        request.outputs.add(name=_text(output, "name", f"outputs[{at}].name"))
    return request


def response_to_json(response: ModelInferResponse) -> dict[str, Any]:
    """Return a response in the protocol's JSON form, `data` flat and in row-major order."""
    raw = response.raw_output_contents
    outputs = []
    for at, output in enumerate(response.outputs):
        shown: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if output.parameters:
            shown["parameters"] = _shown_parameters(output.parameters)
        try:
            shown["data"] = _from_raw(output.datatype, raw[at]) if raw else _from_contents(output)
        except (IndexError, KeyError, struct.error, UnicodeDecodeError):
            raise CliError(f"output {at} of the answer cannot be read") from None
        outputs.append(shown)
    result: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version:
        result["model_version"] = response.model_version
    if response.id:
        result["id"] = response.id
    if response.parameters:
        result["parameters"] = _shown_parameters(response.parameters)
    result["outputs"] = outputs
    return result


def _input(request: ModelInferRequest, tensor: Any, field: str) -> None:
    if not isinstance(tensor, dict):
        raise usage(f"{field} must be an object")
    datatype = _text(tensor, "datatype", f"{field}.datatype")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise usage(f"{field}.shape must be a list of integers")
    if not isinstance(tensor.get("data"), list):
        raise usage(f"{field}.data must be a list")
    attribute = _CONTENTS.get(datatype)
    if attribute is None:
        raise usage(f"{field}.datatype has no JSON form", f"one of {', '.join(_CONTENTS)}")
    values = list(_flat(tensor["data"]))
    try:
        added = request.inputs.add(
            name=_text(tensor, "name", f"{field}.name"), datatype=datatype, shape=shape
        )
        if datatype == "BYTES":
            values = [value.encode() for value in values]
        getattr(added.contents, attribute).extend(values)
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise usage(f"{field}: data or shape does not fit its datatype") from None
    _parameters(tensor.get("parameters"), added.parameters, f"{field}.parameters")


def _flat(data: list[Any]) -> Iterator[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item


def _text(holder: Mapping[str, Any], key: str, field: str, default: str | None = None) -> str:
    value = holder.get(key, default)
    if not isinstance(value, str):
        raise usage(f"{field} must be a string")
    return _encodable(value, field)


def _encodable(text: str, field: str) -> str:
    """Return a text as it is, unless JSON had half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise usage(f"{field} is not Unicode text") from None
    return text


def _parameters(given: Any, into: Any, field: str) -> None:
    if given is None:
        return
    if not isinstance(given, dict):
        raise usage(f"{field} must be an object")
    for name, value in given.items():
        _encodable(name, field)
        match value:
            case bool():
                into[name].bool_param = value
            case int() if -(1 << 63) <= value < 1 << 63:
                into[name].int64_param = value
            case float():
                into[name].double_param = value
            case str():
                into[name].string_param = _encodable(value, field)
            case _:
                raise usage(f"{field}: a parameter is a boolean, a number or a string")


def _shown_parameters(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name in sorted(parameters):
        choice = parameters[name].WhichOneof("parameter_choice")
        shown[name] = getattr(parameters[name], choice) if choice else None
    return shown


def _from_raw(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        code = _FORMATS[datatype]
        return [item[0] for item in struct.iter_unpack(f"<{code}", raw)]
    items = []
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            raise IndexError
        items.append(raw[at - length : at].decode())
    return items


def _from_contents(output: ModelInferResponse.InferOutputTensor) -> list[Any]:
    values = list(getattr(output.contents, _CONTENTS[output.datatype]))
    return [v.decode() for v in values] if output.datatype == "BYTES" else values
