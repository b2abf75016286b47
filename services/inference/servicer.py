"""InferenceService: protobuf and domain, no logic. Infer is served by the seam (worker.py)."""

from __future__ import annotations

from typing import NoReturn

import grpc

from sealward.api.inference.v1 import inference_pb2
from sealward.api.inference.v1.inference_pb2_grpc import InferenceServiceServicer
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.inference.registry import Entry, Registry, State

_STATES = {
    State.LOADING: inference_pb2.MODEL_STATE_LOADING,
    State.READY: inference_pb2.MODEL_STATE_READY,
    State.FAILED: inference_pb2.MODEL_STATE_FAILED,
}


class InferenceServicer(InferenceServiceServicer):
    """Answers what the models are."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def Infer(
        self,
        request_iterator: object,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> NoReturn:
        """Never reached: the front of the seam stands in this method's place (app.py)."""
        raise SealwardError(Reason.METHOD_UNKNOWN, "this method is served as a stream of batches")

    def ListModels(
        self,
        request: inference_pb2.ListModelsRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> inference_pb2.ListModelsResponse:
        """All models by name and version, failed ones with their reason."""
        return inference_pb2.ListModelsResponse(
            models=[_to_proto(entry) for entry in self._registry.entries()]
        )


def _to_proto(entry: Entry) -> inference_pb2.Model:
    model = inference_pb2.Model(
        name=entry.name, version=entry.version, state=_STATES[entry.state], reason=entry.reason
    )
    if entry.manifest is not None:
        model.digest = entry.manifest.digest_bytes
        model.manifest_json = entry.manifest.canonical_json()
        model.default_timeout_ms = entry.manifest.default_timeout_ms
    return model
