"""Questions about models that come with the predictions: is it ready, what does it declare."""

from __future__ import annotations

from collections.abc import Iterable

from sealward.api.oip.v2.open_inference_pb2 import (
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
)
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.inference.manifest import InputSpec, OutputSpec
from services.inference.registry import Registry

_SERVICE = "/inference.GRPCInferenceService/"
MODEL_READY = f"{_SERVICE}ModelReady"
MODEL_METADATA = f"{_SERVICE}ModelMetadata"
PLATFORM = "onnxruntime_onnx"
"""The name that the protocol's other servers give to ONNX models."""


def answer(registry: Registry, method: str, body: bytes) -> bytes:
    """Return the serialised answer to a question.

    Raises SealwardError (METHOD_UNKNOWN, MODEL_UNKNOWN, MODEL_NOT_READY) and DecodeError.
    """
    if method == MODEL_READY:
        return _ready(registry, ModelReadyRequest.FromString(body)).SerializeToString()
    if method == MODEL_METADATA:
        return _metadata(registry, ModelMetadataRequest.FromString(body)).SerializeToString()
    raise SealwardError(Reason.METHOD_UNKNOWN, "this method is not served")


def _ready(registry: Registry, request: ModelReadyRequest) -> ModelReadyResponse:
    """A model that is there and not ready is an answer; one that is not there is an error."""
    try:
        registry.find(request.name, request.version)
    except SealwardError as error:
        if error.reason is not Reason.MODEL_NOT_READY:
            raise
        return ModelReadyResponse(ready=False)
    return ModelReadyResponse(ready=True)


def _metadata(registry: Registry, request: ModelMetadataRequest) -> ModelMetadataResponse:
    manifest = registry.find(request.name, request.version).manifest
    return ModelMetadataResponse(
        name=manifest.name,
        versions=[entry.version for entry in registry.entries() if entry.name == manifest.name],
        platform=PLATFORM,
        inputs=_tensors(manifest.inputs),
        outputs=_tensors(manifest.outputs),
        properties={
            "sealward.model.version": manifest.version,
            "sealward.model.digest": manifest.digest,
            "sealward.determinism": manifest.deterministic,
            "summary": manifest.summary,
        },
    )


def _tensors(
    specs: Iterable[InputSpec | OutputSpec],
) -> list[ModelMetadataResponse.TensorMetadata]:
    return [
        ModelMetadataResponse.TensorMetadata(
            name=spec.name, datatype=spec.datatype, shape=spec.shape
        )
        for spec in specs
    ]
