"""Requests to arrays: checks everything that a model declares before the model sees it.

Written for the commonest call, one row of raw float32, where it costs about as much as the run
itself: the message is parsed once, raw bytes become arrays without a copy, ranges are compared with
arrays made when the model was loaded.

Errors name the field (`inputs[measurements].fields[mean radius]`), the row and what the model
declares, never what the caller sent: not even an unknown input's name is repeated.

Inputs that the model does not declare are dropped unread where every declared one is there, or
refused where the site says so (ADR 0040).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.inference import contents
from services.inference.datatypes import Array, bfloat16_to_float32
from services.inference.manifest import FieldSpec, InputSpec, Manifest
from services.inference.undeclared import Dropped, dropped

# Parameters that would change what the answer means, of extensions that are not served.
_UNSERVED = frozenset(
    {
        "classification", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size",
        "sequence_id", "sequence_start", "sequence_end",
    }
)  # fmt: skip


@dataclass(slots=True)  # not frozen: that would triple the cost of making one
class Decoded:
    """A checked request; not changed after it was made.

    `arrays` are in the manifest's order and may share memory with the request's bytes. `outputs`
    are indices into the manifest's outputs, in the order that the caller asked for. `raw` says in
    which form the caller sent, and so wants, its tensors. `dropped`: what the request held beside
    the declared inputs, and is not in here.
    """

    id: str
    rows: int
    arrays: tuple[Array, ...]
    outputs: tuple[int, ...]
    raw: bool
    dropped: Dropped | None = None


class Decoder:
    """Checks and decodes the requests to one model. Stateless after it was made; thread-safe.

    `refuse_undeclared`: a request with an input that the model does not declare is refused.
    """

    def __init__(self, manifest: Manifest, *, refuse_undeclared: bool = False) -> None:
        self._refuse_undeclared = refuse_undeclared
        self._inputs = tuple(_Input(spec, manifest.max_rows) for spec in manifest.inputs)
        self._by_name = {i.spec.name: n for n, i in enumerate(self._inputs)}
        self._outputs = {spec.name: n for n, spec in enumerate(manifest.outputs)}
        self._all = tuple(range(len(manifest.outputs)))

    def decode(self, request: ModelInferRequest) -> Decoded:
        """Check a request against the manifest; raise SealwardError at the first thing wrong."""
        if request.parameters:
            _refuse_unserved(request.parameters, "parameters")
        sent = request.inputs
        raws = request.raw_input_contents
        count = len(sent)
        raw = bool(raws)
        if raw and len(raws) != count:
            raise SealwardError(
                Reason.FIELD_INVALID,
                "raw_input_contents must have one entry for each input",
                field="raw_input_contents",
            )
        arrays: list[Array | None] = [None] * len(self._inputs)
        rows = 0
        undeclared: list[int] = []
        # By index: iterating over a container of the protobuf runtime ends in an exception.
        for index in range(count):
            tensor = sent[index]
            place = self._by_name.get(tensor.name)
            if place is None:
                undeclared.append(index)
                continue
            declared = self._inputs[place]
            if arrays[place] is not None:
                raise SealwardError(
                    Reason.INPUT_NAME, "the input is there twice", field=declared.path
                )
            array = declared.decode(tensor, raws[index] if raw else None)
            arrays[place] = array
            if declared.has_rows:
                if rows and array.shape[0] != rows:
                    raise SealwardError(
                        Reason.INPUT_SHAPE,
                        "all inputs must have the same number of rows",
                        field=f"{declared.path}.shape",
                    )
                rows = array.shape[0]
        if count != len(self._inputs) or undeclared:
            self._check_names(arrays, undeclared)
        outputs = self._requested(request.outputs) if request.outputs else self._all
        decoded = Decoded(request.id, rows or 1, tuple(arrays), outputs, raw)  # type: ignore[arg-type]
        if undeclared:
            decoded.dropped = dropped(sent[index].name for index in undeclared)
        return decoded

    def _check_names(self, arrays: Sequence[Array | None], undeclared: Sequence[int]) -> None:
        """Raise INPUT_NAME unless every declared input is there and others may be dropped."""
        missing = [i for i, a in zip(self._inputs, arrays, strict=True) if a is None]
        # A declared input under a mistyped name is the likeliest cause when both are true.
        if undeclared and (missing or self._refuse_undeclared):
            raise SealwardError(
                Reason.INPUT_NAME,
                f"the model declares no such input; it declares {', '.join(self._by_name)}",
                field=f"inputs[{undeclared[0]}].name",
            )
        if missing:
            raise SealwardError(Reason.INPUT_NAME, "the input is missing", field=missing[0].path)

    def _requested(
        self, requested: Sequence[ModelInferRequest.InferRequestedOutputTensor]
    ) -> tuple[int, ...]:
        chosen: list[int] = []
        for index, output in enumerate(requested):
            place = self._outputs.get(output.name)
            if place is None:
                raise SealwardError(
                    Reason.OUTPUT_NAME,
                    f"the model has no such output; it has {', '.join(self._outputs)}",
                    field=f"outputs[{index}].name",
                )
            if place in chosen:
                raise SealwardError(
                    Reason.OUTPUT_NAME,
                    "the output is asked for twice",
                    field=f"outputs[{index}].name",
                )
            if output.parameters:
                _refuse_unserved(output.parameters, f"outputs[{index}].parameters")
            chosen.append(place)
        return tuple(chosen)


class _Input:
    """One declared input with what was computed from its declaration."""

    def __init__(self, spec: InputSpec, max_rows: int) -> None:
        self.spec = spec
        self.path = f"inputs[{spec.name}]"
        self.has_rows = spec.has_rows
        self._datatype = spec.datatype
        self._dtype = spec.type.numpy
        self._max_rows = max_rows if spec.has_rows else 0
        # What one row looks like, for datatypes whose every bit pattern is a value.
        plain = spec.row_items is not None and spec.datatype not in {"BOOL", "BYTES"}
        self._one_row = list(spec.shape_for(1)) if plain else None
        self._one_row_shape = tuple(self._one_row or ())
        self._one_row_bytes = (spec.row_items or 0) * spec.type.size
        self._low, self._high = _bounds(spec)
        self._nan = spec.allow_nan

    def decode(self, tensor: ModelInferRequest.InferInputTensor, raw: bytes | None) -> Array:
        """Return the tensor as a checked array."""
        if tensor.datatype != self._datatype:
            raise SealwardError(
                Reason.INPUT_DATATYPE,
                f"the datatype must be {self._datatype}",
                field=f"{self.path}.datatype",
            )
        if tensor.parameters:
            _refuse_unserved(tensor.parameters, f"{self.path}.parameters")
        shape = tensor.shape[:]
        if raw is None:
            size = self._check_shape(shape)
            array = contents.from_typed(self.spec, self.path, tensor, size).reshape(shape)
        else:
            if tensor.HasField("contents"):
                raise SealwardError(
                    Reason.FIELD_INVALID,
                    "an input is either raw or typed, not both",
                    field=f"{self.path}.contents",
                )
            if shape == self._one_row and len(raw) == self._one_row_bytes:
                array = np.ndarray(self._one_row_shape, self._dtype, raw)
            else:
                size = self._check_shape(shape)
                array = contents.from_raw(self.spec, self.path, raw, size).reshape(shape)
        low, high = self._low, self._high
        if low is not None and high is not None:
            values = array if self._datatype != "BF16" else bfloat16_to_float32(array)
            # Both comparisons are false for NaN. A zero byte in a boolean array is a False.
            if 0 in np.greater_equal(values, low).tobytes() or (
                0 in np.less_equal(values, high).tobytes()
            ):
                self._explain(values)
        return array

    def _check_shape(self, shape: Sequence[int]) -> int:
        """Return the number of elements, an int without a bound: 2^63 × 2^63 does not wrap."""
        declared = self.spec.shape
        if len(shape) != len(declared) or any(
            want not in (-1, got) for got, want in zip(shape, declared, strict=True)
        ):
            raise SealwardError(
                Reason.INPUT_SHAPE,
                f"the shape must be {list(declared)}, where -1 is any size",
                field=f"{self.path}.shape",
            )
        if any(got < 1 for got in shape):
            raise SealwardError(
                Reason.INPUT_SHAPE, "every dimension must be at least 1", field=f"{self.path}.shape"
            )
        if self._max_rows and shape[0] > self._max_rows:
            raise SealwardError(
                Reason.INPUT_SHAPE,
                f"at most {self._max_rows} rows a request",
                field=f"{self.path}.shape",
            )
        return math.prod(shape)

    def _explain(self, values: Array) -> None:
        """Find what is wrong with which field and say so; NaN passes where the model allows it."""
        nan = np.isnan(values) if self.spec.type.is_float else np.zeros(values.shape, bool)
        if not self._nan and nan.any():
            path, where, _ = self._place(nan)
            raise SealwardError(Reason.INPUT_NOT_FINITE, f"NaN is not allowed{where}", field=path)
        if self.spec.type.is_float and (infinite := np.isinf(values)).any():
            path, where, _ = self._place(infinite)
            raise SealwardError(
                Reason.INPUT_NOT_FINITE, f"infinity is not allowed{where}", field=path
            )
        outside = ~(nan | ((values >= self._low) & (values <= self._high)))
        if outside.any():
            path, where, field = self._place(outside)
            raise SealwardError(
                Reason.INPUT_RANGE,
                f"the value is outside the declared range{_range(field)}{where}",
                field=path,
            )

    def _place(self, wrong: Array) -> tuple[str, str, FieldSpec | None]:
        """Return path, row and field of the first element that is wrong."""
        place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        where = f" (row {int(place[0])})" if self.spec.has_rows else ""
        if not self.spec.fields:
            return self.path, where, None
        field = self.spec.fields[int(place[-1])]
        return f"{self.path}.fields[{field.name}]", where, field


def _bounds(spec: InputSpec) -> tuple[Array | None, Array | None]:
    """Return the lowest and highest values of each column, or None where nothing can be wrong.

    Where a float field has no bound of its own, the largest finite number stands in, so that one
    comparison finds infinity and NaN too.
    """
    kind = spec.type
    if kind.is_float:
        dtype: Any = np.float32 if spec.datatype == "BF16" else kind.numpy
        lowest, highest = float(np.finfo(dtype).min), float(np.finfo(dtype).max)
        if spec.datatype == "BF16":
            highest = float(bfloat16_to_float32(np.array([0x7F7F], np.uint16))[0])
            lowest = -highest
    elif kind.is_integer and any(
        f.minimum is not None or f.maximum is not None for f in spec.fields
    ):
        dtype, lowest, highest = kind.numpy, kind.low, kind.high
    else:
        return None, None
    width = max(1, len(spec.fields))
    low = np.full(width, lowest, dtype=dtype)
    high = np.full(width, highest, dtype=dtype)
    for column, field in enumerate(spec.fields):
        if field.minimum is not None:
            low[column] = _within(math.ceil, field.minimum, lowest, highest, kind.is_integer)
        if field.maximum is not None:
            high[column] = _within(math.floor, field.maximum, lowest, highest, kind.is_integer)
    # With the dimensions of one row NumPy need not broadcast, which is half the cost.
    inner = (1,) * (len(spec.shape) - 1)
    return low.reshape((*inner, width)), high.reshape((*inner, width))


def _within(whole: Any, bound: float, lowest: float, highest: float, integer: bool) -> float:
    """Return a bound in the datatype's own domain, rounded inwards for integers."""
    value = whole(bound) if integer else bound
    return min(max(value, lowest), highest)


def _range(field: FieldSpec | None) -> str:
    if field is None or (field.minimum is None and field.maximum is None):
        return ""
    low = "" if field.minimum is None else f" from {field.minimum:g}"
    high = "" if field.maximum is None else f" to {field.maximum:g}"
    unit = "" if field.unit == "1" else f" {field.unit}"
    return f"{low}{high}{unit}"


def _refuse_unserved(parameters: Any, path: str) -> None:
    for key in _UNSERVED & set(parameters):
        raise SealwardError(
            Reason.NOT_SUPPORTED, f"the parameter {key} is not served", field=f"{path}[{key}]"
        )
