"""Tensor contents of the Open Inference Protocol: raw bytes and typed fields, both ways.

Raw: little-endian, row-major; BYTES as four bytes of length before each element. Typed: one
repeated field per family of datatypes; FP16 and BF16 have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sealward.api.oip.v2.open_inference_pb2 import InferTensorContents, ModelInferRequest
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.inference.datatypes import Array
from services.inference.manifest import InputSpec, TensorSpec

_LENGTH_BYTES = 4


def from_raw(spec: InputSpec, path: str, raw: bytes, size: int) -> Array:
    """Return `size` elements as a flat array that shares the bytes; raise SealwardError."""
    if spec.datatype == "BYTES":
        return _from_raw_bytes(spec, path, raw, size)
    if len(raw) != size * spec.type.size:
        raise SealwardError(
            Reason.INPUT_SHAPE,
            "the bytes do not fill the shape exactly",
            field=f"raw_input_contents[{spec.name}]",
        )
    if spec.datatype == "BOOL" and raw.translate(None, b"\x00\x01"):
        raise SealwardError(Reason.INPUT_RANGE, "a BOOL is one byte, 0 or 1", field=path)
    return np.frombuffer(raw, dtype=spec.type.numpy)


def _from_raw_bytes(spec: InputSpec, path: str, raw: bytes, size: int) -> Array:
    wrong = SealwardError(
        Reason.INPUT_SHAPE,
        "the elements do not fill the shape exactly: each has four bytes of length before it",
        field=f"raw_input_contents[{spec.name}]",
    )
    elements = []
    position = 0
    # A shape bomb ends where the bytes end: each element takes at least its length.
    for _ in range(size):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(raw[position:start], "little")
        if start > len(raw) or position > len(raw):
            raise wrong
        elements.append(raw[start:position])
    if position != len(raw):
        raise wrong
    return _strings(spec, path, elements)


def from_typed(
    spec: InputSpec, path: str, tensor: ModelInferRequest.InferInputTensor, size: int
) -> Array:
    """Return `size` elements as a flat array; raise SealwardError."""
    kind = spec.type
    if not kind.contents:
        raise SealwardError(
            Reason.INPUT_DATATYPE,
            f"{spec.datatype} travels in raw_input_contents only",
            field=f"{path}.contents",
        )
    sent = tensor.contents
    if any(field.name != kind.contents for field, _ in sent.ListFields()):
        raise SealwardError(
            Reason.INPUT_DATATYPE,
            f"{spec.datatype} travels in {kind.contents}",
            field=f"{path}.contents",
        )
    values = getattr(sent, kind.contents)
    if len(values) != size:
        raise SealwardError(
            Reason.INPUT_SHAPE,
            f"{kind.contents} does not fill the shape exactly",
            field=f"{path}.contents",
        )
    if spec.datatype == "BYTES":
        return _strings(spec, path, values)
    if kind.is_integer and kind.size < _LENGTH_BYTES:
        # The field is 32 bits wide; the datatype is not.
        wide = np.array(values[:], dtype=np.int64)
        if wide.min() < kind.low or wide.max() > kind.high:
            raise SealwardError(
                Reason.INPUT_RANGE, f"a value does not fit {spec.datatype}", field=path
            )
        return wide.astype(kind.numpy)
    return np.array(values[:], dtype=kind.numpy)


def _strings(spec: InputSpec, path: str, elements: Sequence[bytes]) -> Array:
    """ONNX Runtime takes strings: each element must be UTF-8 and of the declared length."""
    out: Array = np.empty(len(elements), dtype=object)
    for index, element in enumerate(elements):
        if len(element) > spec.max_item_bytes:
            raise SealwardError(
                Reason.INPUT_RANGE,
                f"an element has at most {spec.max_item_bytes} bytes",
                field=path,
            )
        try:
            out[index] = element.decode()
        except UnicodeDecodeError:
            raise SealwardError(Reason.INPUT_RANGE, "an element is not UTF-8", field=path) from None
    return out


def to_raw(array: Array) -> bytes:
    """Return an output's elements as raw bytes."""
    if array.dtype != object:
        return array.tobytes()
    parts: list[bytes] = []
    for value in array.ravel():
        element = str(value).encode()
        parts += (len(element).to_bytes(_LENGTH_BYTES, "little"), element)
    return b"".join(parts)


def to_typed(spec: TensorSpec, array: Array) -> InferTensorContents:
    """Return an output's elements in the typed field of its datatype, which must have one."""
    values: Any = array.ravel().tolist()
    if spec.datatype == "BYTES":
        values = [str(value).encode() for value in values]
    typed = InferTensorContents()
    getattr(typed, spec.type.contents).extend(values)
    return typed
