"""The server to beat: the Open Inference Protocol over plaintext grpc.aio, as one writes it first.

No identity, no session, no policy, no record. It runs the same ONNX file with the same runtime
options as the suite, and nothing in it is slower than it has to be: protobuf by upb, tensors
without copies.

    python -m benchmarks.naive_server MODEL.onnx PORT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc.aio
import numpy as np
import onnxruntime as ort

from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from sealward.api.oip.v2.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

_DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}


def session(model: Path) -> ort.InferenceSession:
    """Open a model with one thread, as every peer here does."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])


class Servicer(GRPCInferenceServiceServicer):
    """Answers ModelInfer."""

    def __init__(self, model: Path) -> None:
        self._session = session(model)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    async def ModelInfer(  # type: ignore[override]
        self, request: ModelInferRequest, _context: object
    ) -> ModelInferResponse:
        shape = list(request.inputs[0].shape)
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        values = self._session.run(self._outputs, {self._input: rows})
        response = ModelInferResponse(
            model_name=request.model_name, model_version="1", id=request.id
        )
        for name, value in zip(self._outputs, values, strict=True):
            response.outputs.add(name=name, datatype=_DATATYPES[value.dtype], shape=value.shape)
            response.raw_output_contents.append(value.tobytes())
        return response


async def serve(model: Path, port: int) -> None:
    server = grpc.aio.server()
    servicer = Servicer(model)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
