"""What a model declares: names, types, shapes, ranges, limits, and where it comes from.

Strict: an unknown key, a value of another type or a gap stops the model from loading. The manifest
is the contract that requests are checked against (tensors.py) and that callers can read.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.inference.datatypes import DATATYPES, DataType

MAX_MANIFEST_BYTES = 1 << 20

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Version = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_./:-]{0,127}$")]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Short = Annotated[str, Field(min_length=1, max_length=120)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
DataTypeName = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Dimension = Annotated[int, Field(ge=-1, le=2**31 - 1)]


class ManifestError(ValueError):
    """The manifest is not usable. Its text names the keys that are wrong, never their values."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class FieldSpec(_Strict):
    """One column of an input: its name, its unit (UCUM where it has one), its inclusive range."""

    name: Short
    unit: Short
    minimum: float | None = None
    maximum: float | None = None
    description: Text | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("minimum is above maximum")
        return self


class TensorSpec(_Strict):
    """What inputs and outputs have in common.

    In `shape` -1 stands for a variable dimension; a leading -1 counts rows.
    """

    name: TensorName
    datatype: DataTypeName
    shape: Annotated[tuple[Dimension, ...], Field(max_length=8)]
    description: Text | None = None

    @model_validator(mode="after")
    def _no_empty_dimension(self) -> Self:
        if 0 in self.shape:
            raise ValueError("a dimension is 0")
        return self

    @property
    def type(self) -> DataType:
        """The datatype's facts."""
        return DATATYPES[self.datatype]

    @property
    def has_rows(self) -> bool:
        """True when the first dimension counts rows."""
        return bool(self.shape) and self.shape[0] == -1

    @property
    def row_items(self) -> int | None:
        """Elements of one row, or None when another dimension than the first is variable."""
        inner = self.shape[1:] if self.has_rows else self.shape
        return None if -1 in inner else math.prod(inner)

    def shape_for(self, rows: int) -> tuple[int, ...]:
        """The shape that this many rows have; meaningful when row_items is not None."""
        return (rows, *self.shape[1:]) if self.has_rows else self.shape


class InputSpec(TensorSpec):
    """One input.

    `fields` describes the columns of the last dimension, one each; none means that values are only
    checked for being finite. `allow_nan` lets NaN pass (a missing measurement); infinity never
    passes. `max_item_bytes` bounds one element of a BYTES input.
    """

    fields: tuple[FieldSpec, ...] = ()
    allow_nan: bool = False
    max_item_bytes: Annotated[int, Field(ge=1, le=1 << 24)] = 4096

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if not self.fields:
            return self
        if not self.shape or self.shape[-1] != len(self.fields) or len(self.shape) < 1:
            raise ValueError("the last dimension is not the number of fields")
        if len({f.name for f in self.fields}) != len(self.fields):
            raise ValueError("two fields have the same name")
        bounded = any(f.minimum is not None or f.maximum is not None for f in self.fields)
        if bounded and self.datatype in {"BYTES", "BOOL"}:
            raise ValueError("a range needs numbers")
        return self


class OutputSpec(TensorSpec):
    """One output."""

    unit: Short | None = None


class DataSpec(_Strict):
    """What the inputs are (goes into every record) and what the model was trained on."""

    category: Label
    origin: Label
    source: Text
    licence: Text


class RegulatorySpec(_Strict):
    """What a regulator would ask first."""

    status: Label
    jurisdiction: Short
    basis: Text


class Manifest(_Strict):
    """The manifest of one version of one model.

    `deterministic`: `strict` = each request is a run of its own, `tolerance` = rows of waiting
    requests are joined. `protected_inputs` names the fields or inputs that carry race, colour,
    national origin, sex, age or disability (45 CFR 92.210); an empty list is an answer, a missing
    one is not. `digest` is the SHA-256 of the ONNX file, lower-case hexadecimal.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    version: Version
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    summary: Text
    inputs: Annotated[tuple[InputSpec, ...], Field(min_length=1, max_length=64)]
    outputs: Annotated[tuple[OutputSpec, ...], Field(min_length=1, max_length=64)]
    deterministic: Literal["strict", "tolerance"]
    max_rows: Annotated[int, Field(ge=1, le=1 << 20)]
    default_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)]
    data: DataSpec
    regulatory: RegulatorySpec
    protected_inputs: tuple[Short, ...]
    changelog: Annotated[tuple[Text, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for specs in (self.inputs, self.outputs):
            if len({spec.name for spec in specs}) != len(specs):
                raise ValueError("two tensors have the same name")
        known = {i.name for i in self.inputs} | {f.name for i in self.inputs for f in i.fields}
        if not set(self.protected_inputs) <= known:
            raise ValueError("protected_inputs names something that is no input and no field")
        if self.deterministic == "tolerance" and not self.joinable:
            raise ValueError("joining rows needs a leading -1 and no other one in every tensor")
        return self

    @property
    def joinable(self) -> bool:
        """True when rows of several requests can be one run."""
        return all(
            spec.has_rows and spec.row_items is not None for spec in (*self.inputs, *self.outputs)
        )

    @property
    def digest_bytes(self) -> bytes:
        """The digest as 32 bytes."""
        return bytes.fromhex(self.digest)

    @property
    def ident(self) -> str:
        """`name@version`, the resource id of everything sealed for this model."""
        return f"{self.name}@{self.version}"

    def canonical_json(self) -> str:
        """The manifest as JSON with sorted keys and no spaces, the same for the same content."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse_manifest(raw: bytes) -> Manifest:
    """Parse a manifest; raise ManifestError."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ManifestError("the manifest is too large")
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ManifestError(f"manifest: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """Name what is wrong and where, without the values that were given."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'content'}: {item['msg']}"
        for item in error.errors(include_input=False, include_url=False, include_context=False)[:8]
    )
