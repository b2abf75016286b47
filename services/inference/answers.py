"""Arrays to responses: ModelInferResponse and InferenceRecord, written from templates.

Names, versions, digests and shapes are the same in every answer of a model, so their bytes are made
once; what differs is joined between them. Typed answers, which are rare, use the protobuf classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from sealward.api.inference.v1.inference_pb2 import InferenceRecord
from sealward.api.oip.v2.open_inference_pb2 import InferParameter, ModelInferResponse
from sealward.kit.wire import BYTES, VARINT, bytes_field, tag, varint
from services.inference import contents
from services.inference.datatypes import Array
from services.inference.manifest import Manifest, OutputSpec
from services.inference.tensors import Decoded
from services.inference.undeclared import Dropped

DIGEST_PARAMETER = "sealward_model_digest"
DROPPED_PARAMETER = "sealward_inputs_dropped"
"""Response parameter (int64): how many inputs the model does not declare, and never saw."""

_ID = tag(3, BYTES)
_RAW = tag(6, BYTES)
_ROWS, _BATCH_SIZE, _BATCH_POSITION = tag(4, VARINT), tag(5, VARINT), tag(6, VARINT)
# Numbers of rows whose headers are kept for each choice of outputs.
_KEPT = 1024

Headers = tuple[bytes, tuple[bytes, ...]]


class Encoder:
    """Writes the answers and records of one model. Thread-safe."""

    def __init__(self, manifest: Manifest, runtime_digest: str) -> None:
        self._outputs = manifest.outputs
        parameters = {DIGEST_PARAMETER: InferParameter(string_param=manifest.digest)}
        self._names = ModelInferResponse(
            model_name=manifest.name, model_version=manifest.version
        ).SerializeToString()
        self._parameters = ModelInferResponse(parameters=parameters).SerializeToString()
        self._record = InferenceRecord(
            model_name=manifest.name,
            model_version=manifest.version,
            model_digest=manifest.digest_bytes,
            runtime_digest=runtime_digest,
            determinism=manifest.deterministic,
            data_category=manifest.data.category,
            data_origin=manifest.data.origin,
        ).SerializeToString()
        self._fixed = all(s.row_items is not None and s.type.size for s in manifest.outputs)
        self._raw_only = tuple(not spec.type.contents for spec in manifest.outputs)
        self._headers: dict[tuple[tuple[int, ...], int], Headers] = {}

    def answer(self, request: Decoded, outputs: Sequence[Array]) -> bytes:
        """Return the serialised response. `outputs` are all outputs, rows of this request only.

        Raw when the request was, and also when a wanted output has no typed form: the protocol
        wants one form for all outputs of a response.
        """
        if request.dropped is not None:
            # Parameters may stand anywhere in a message.
            return self._answer(request, outputs) + _said(request.dropped)
        return self._answer(request, outputs)

    def _answer(self, request: Decoded, outputs: Sequence[Array]) -> bytes:
        wanted = request.outputs
        if not request.raw and not any(self._raw_only[n] for n in wanted):
            return self._typed(request, outputs)
        parts = [self._names]
        if request.id:
            ident = request.id.encode()
            parts += (_ID, varint(len(ident)), ident)
        if self._fixed:
            headers, prefixes = self._fixed_headers(wanted, request.rows)
            parts.append(headers)
            for prefix, place in zip(prefixes, wanted, strict=True):
                parts += (prefix, outputs[place].tobytes())
            return b"".join(parts)
        raws = [contents.to_raw(outputs[place]) for place in wanted]
        parts.append(self._parameters)
        parts += [_header(self._outputs[place], outputs[place].shape) for place in wanted]
        parts += [bytes_field(6, raw) for raw in raws]
        return b"".join(parts)

    def record(
        self, rows: int, batch_size: int, position: int, dropped: Dropped | None = None
    ) -> bytes:
        """Return the serialised InferenceRecord of one call."""
        counts = _ROWS + varint(rows) + _BATCH_SIZE + varint(batch_size)
        if position:
            counts += _BATCH_POSITION + varint(position)
        if dropped is not None:
            counts += InferenceRecord(
                inputs_dropped=dropped.count, dropped_names=dropped.names
            ).SerializeToString()
        return self._record + counts

    @property
    def refused_record(self) -> bytes:
        """The record of a call that reached the model's contract and did not run."""
        return self._record

    def _fixed_headers(self, wanted: tuple[int, ...], rows: int) -> Headers:
        """Return everything before the raw contents, and what stands before each of them."""
        found = self._headers.get((wanted, rows))
        if found is None:
            specs = [self._outputs[place] for place in wanted]
            found = (
                self._parameters + b"".join(_header(s, s.shape_for(rows)) for s in specs),
                tuple(_RAW + varint(_bytes_of(s, rows)) for s in specs),
            )
            if len(self._headers) < _KEPT:
                self._headers[wanted, rows] = found
        return found

    def _typed(self, request: Decoded, outputs: Sequence[Array]) -> bytes:
        response = ModelInferResponse(id=request.id)
        response.MergeFromString(self._names + self._parameters)
        for place in request.outputs:
            spec, array = self._outputs[place], outputs[place]
            response.outputs.add(
                name=spec.name,
                datatype=spec.datatype,
                shape=array.shape,
                contents=contents.to_typed(spec, array),
            )
        return response.SerializeToString()


def _said(dropped: Dropped) -> bytes:
    count = InferParameter(int64_param=dropped.count)
    return ModelInferResponse(parameters={DROPPED_PARAMETER: count}).SerializeToString()


def _header(spec: OutputSpec, shape: Sequence[int]) -> bytes:
    response = ModelInferResponse()
    response.outputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
    return response.SerializeToString()


def _bytes_of(spec: OutputSpec, rows: int) -> int:
    return (spec.row_items or 0) * (rows if spec.has_rows else 1) * spec.type.size
