"""The datatypes of the Open Inference Protocol v2 and what they are in NumPy and ONNX Runtime.

BF16 has no NumPy type: its tensors are handled as uint16 bit patterns. BYTES are object arrays of
`str`, because that is what ONNX Runtime takes for string tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class DataType:
    """One datatype.

    `contents` is the field of InferTensorContents that carries it typed, empty where the protocol
    has none (FP16 and BF16 travel raw only). `size` is the bytes of an element, 0 for BYTES. `onnx`
    is the element type of TensorProto. `low` and `high` bound what a typed integer may hold.
    """

    name: str
    numpy: np.dtype[Any]
    ort: str
    onnx: int
    contents: str
    size: int
    low: int = 0
    high: int = 0

    @property
    def is_float(self) -> bool:
        """True for the datatypes that can hold NaN."""
        return self.name in {"FP16", "BF16", "FP32", "FP64"}

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers."""
        return self.high != 0


def _table() -> dict[str, DataType]:
    rows = [
        DataType("BOOL", np.dtype(np.bool_), "tensor(bool)", 9, "bool_contents", 1),
        DataType("FP16", np.dtype("<f2"), "tensor(float16)", 10, "", 2),
        DataType("BF16", np.dtype("<u2"), "tensor(bfloat16)", 16, "", 2),
        DataType("FP32", np.dtype("<f4"), "tensor(float)", 1, "fp32_contents", 4),
        DataType("FP64", np.dtype("<f8"), "tensor(double)", 11, "fp64_contents", 8),
        DataType("BYTES", np.dtype(object), "tensor(string)", 8, "bytes_contents", 0),
    ]
    onnx_types = {
        "INT8": 3, "INT16": 5, "INT32": 6, "INT64": 7,
        "UINT8": 2, "UINT16": 4, "UINT32": 12, "UINT64": 13,
    }  # fmt: skip
    for name, onnx_type in onnx_types.items():
        dtype = np.dtype(name.lower()).newbyteorder("<")
        info = np.iinfo(dtype)
        # The protocol has one field for all integers up to 32 bits and one for 64.
        contents = ("uint" if name[0] == "U" else "int") + ("64" if info.bits == 64 else "")
        rows.append(
            DataType(
                name,
                dtype,
                f"tensor({name.lower()})",
                onnx_type,
                f"{contents}_contents",
                info.bits // 8,
                int(info.min),
                int(info.max),
            )
        )
    return {row.name: row for row in rows}


DATATYPES: Mapping[str, DataType] = MappingProxyType(_table())


def bfloat16_to_float32(bits: Array) -> Array:
    """Widen BF16 bit patterns to float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: Array) -> Array:
    """Round float32 to the nearest BF16 bit pattern, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
