"""The calls of the Open Inference Protocol that are not predictions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from sealward import __version__
from sealward.api.oip.v2 import open_inference_pb2 as oip
from sealward.api.oip.v2 import open_inference_pb2_grpc as oip_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority
from services.gateway.exchange import Exchange, reply_error

EXTENSIONS = ("sealward_receipt", "sealward_model_digest")
_LONGEST_SECONDS = 5.0

_Response = TypeVar("_Response", bound=Message)


class InferenceServicer(oip_grpc.GRPCInferenceServiceServicer):
    """Server and model questions. ModelInfer goes through the pipeline and never comes here.

    `known` says whether a model of this name is listed, `ready` whether every dependency of a
    prediction is there.
    """

    def __init__(
        self,
        authority: Authority,
        inference: Exchange,
        known: Callable[[str], bool],
        ready: Callable[[], bool],
    ) -> None:
        self._authority = authority
        self._inference = inference
        self._known = known
        self._ready = ready

    def ServerLive(self, _request: oip.ServerLiveRequest, _context: Any) -> oip.ServerLiveResponse:
        """The process answers, so it lives."""
        return oip.ServerLiveResponse(live=True)

    def ServerReady(
        self, _request: oip.ServerReadyRequest, _context: Any
    ) -> oip.ServerReadyResponse:
        """Whether a prediction could be answered now."""
        return oip.ServerReadyResponse(ready=self._ready())

    def ServerMetadata(
        self, _request: oip.ServerMetadataRequest, context: Any
    ) -> oip.ServerMetadataResponse:
        """Name, version and extensions."""
        self._authority.admit(context)
        return oip.ServerMetadataResponse(
            name="sealward", version=__version__, extensions=EXTENSIONS
        )

    def ModelReady(self, request: oip.ModelReadyRequest, context: Any) -> oip.ModelReadyResponse:
        """Whether a model can be asked; inference knows."""
        return self._forward(request, context, oip.ModelReadyResponse)

    def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: Any
    ) -> oip.ModelMetadataResponse:
        """Declared inputs and outputs; inference knows."""
        return self._forward(request, context, oip.ModelMetadataResponse)

    def ModelInfer(self, _request: oip.ModelInferRequest, _context: Any) -> oip.ModelInferResponse:
        """Never called: the front of the pipeline has this method."""
        raise SealwardError(Reason.METHOD_UNKNOWN, "this method is served elsewhere")

    def _forward(
        self,
        request: oip.ModelReadyRequest | oip.ModelMetadataRequest,
        context: Any,
        response_type: type[_Response],
    ) -> _Response:
        call = call_of(context)
        if self._known(request.name):
            # Listed, and so no free text of the caller's. Refused calls are to be found by it too.
            call.attributes[names.MODEL_NAME] = request.name
        self._authority.admit(context, request.name)
        deadline = min(call.deadline, time.monotonic() + _LONGEST_SECONDS)
        if deadline <= time.monotonic():
            raise SealwardError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the answer")
        reply, _ = self._inference.call(call.method, request.SerializeToString(), deadline)
        if reply.code:
            raise reply_error(reply)
        try:
            return response_type.FromString(reply.body)
        except DecodeError:
            raise SealwardError(
                Reason.INFERENCE_UNAVAILABLE, "inference gave no usable answer", retry_after=1.0
            ) from None
