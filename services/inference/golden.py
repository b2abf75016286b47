"""The golden self-test: inputs with the answers that the model must give before it is ready.

Tensors are written as in the Open Inference Protocol's JSON. Integers, booleans and strings must be
equal; floats within the declared tolerance, because another class of CPU may round differently.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from services.inference.datatypes import Array, bfloat16_to_float32, float32_to_bfloat16
from services.inference.manifest import Manifest, TensorSpec, describe

MAX_GOLDEN_BYTES = 16 << 20


class GoldenError(ValueError):
    """The self-test is not usable, or its answers differ. Its text holds no values."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class GoldenTensor(_Strict):
    """One tensor, its elements flat in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: tuple[StrictBool | StrictInt | StrictFloat | StrictStr, ...]


class GoldenCase(_Strict):
    """One run and its answer."""

    name: Annotated[str, Field(min_length=1, max_length=120)]
    inputs: tuple[GoldenTensor, ...]
    outputs: tuple[GoldenTensor, ...]


class Golden(_Strict):
    """The self-test of a model: at least one case."""

    absolute_tolerance: Annotated[float, Field(ge=0, le=1)]
    relative_tolerance: Annotated[float, Field(ge=0, le=0.1)]
    cases: Annotated[tuple[GoldenCase, ...], Field(min_length=1, max_length=1000)]

    def agrees(self, spec: TensorSpec, got: Array, wanted: Array) -> bool:
        """True when an output is what the self-test wants."""
        if got.shape != wanted.shape:
            return False
        if not spec.type.is_float:
            return bool(np.array_equal(got, wanted))
        if spec.datatype == "BF16":
            got, wanted = bfloat16_to_float32(got), bfloat16_to_float32(wanted)
        return bool(
            np.allclose(
                got.astype(np.float64),
                wanted.astype(np.float64),
                rtol=self.relative_tolerance,
                atol=self.absolute_tolerance,
                equal_nan=True,
            )
        )


def parse_golden(raw: bytes, manifest: Manifest) -> Golden:
    """Parse a self-test and check that it speaks of this model's tensors; raise GoldenError."""
    if len(raw) > MAX_GOLDEN_BYTES:
        raise GoldenError("the self-test is too large")
    try:
        golden = Golden.model_validate_json(raw)
    except ValidationError as error:
        raise GoldenError(f"self-test: {describe(error)}") from None
    for number, case in enumerate(golden.cases):
        for side, given, specs in (
            ("inputs", case.inputs, manifest.inputs),
            ("outputs", case.outputs, manifest.outputs),
        ):
            if [t.name for t in given] != [s.name for s in specs]:
                raise GoldenError(f"self-test: cases.{number}.{side} are not the declared ones")
            for tensor, spec in zip(given, specs, strict=True):
                to_array(tensor, spec)
    return golden


def to_array(tensor: GoldenTensor, spec: TensorSpec) -> Array:
    """Return the tensor as the engine takes it; raise GoldenError when it does not fit the spec."""
    fits = len(tensor.shape) == len(spec.shape) and all(
        size >= 1 and declared in (-1, size)
        for size, declared in zip(tensor.shape, spec.shape, strict=True)
    )
    if tensor.datatype != spec.datatype or not fits:
        raise GoldenError(f"self-test: tensor {spec.name} is not as declared")
    if math.prod(tensor.shape) != len(tensor.data):
        raise GoldenError(f"self-test: tensor {spec.name} has another number of elements")
    wanted: type | tuple[type, ...] = (int, float) if spec.type.is_float else int
    if spec.datatype == "BOOL":
        wanted = bool
    elif spec.datatype == "BYTES":
        wanted = str
    if not all(
        isinstance(v, wanted) and (wanted is bool or not isinstance(v, bool)) for v in tensor.data
    ):
        raise GoldenError(f"self-test: tensor {spec.name} holds another type of value")
    return _numbers(tensor, spec).reshape(tensor.shape)


def _numbers(tensor: GoldenTensor, spec: TensorSpec) -> Array:
    data: Any = list(tensor.data)
    if spec.datatype == "BF16":
        return float32_to_bfloat16(np.array(data, dtype=np.float32))
    if spec.type.is_integer and not all(spec.type.low <= v <= spec.type.high for v in data):
        raise GoldenError(f"self-test: tensor {spec.name} holds a value outside its datatype")
    return np.array(data, dtype=spec.type.numpy)
