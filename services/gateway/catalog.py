"""What the gateway knows of the models: their names and how long a call may take by default."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import grpc
import structlog

from sealward.api.inference.v1.inference_pb2 import ListModelsRequest
from sealward.api.inference.v1.inference_pb2_grpc import InferenceServiceStub

_EVERY_SECONDS = 5.0
_RETRY_SECONDS = 0.2
_TIMEOUT_SECONDS = 2.0


class Catalog:
    """The default time limits of the models, asked of inference again and again.

    An old answer is kept while inference is away: nothing is decided by it but a time limit.
    """

    def __init__(
        self,
        channel: Callable[[], grpc.Channel],
        default_seconds: float,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._channel = channel
        self._default = default_seconds
        self._log = log
        self._limits: Mapping[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalog", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()

    def time_limit(self, model: str) -> float:
        """Seconds that a call of this model may take when its caller gives no deadline."""
        return self._limits.get(model, self._default)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(_EVERY_SECONDS if self._ask() else _RETRY_SECONDS)

    def _ask(self) -> bool:
        try:
            answer = InferenceServiceStub(self._channel()).ListModels(
                ListModelsRequest(), timeout=_TIMEOUT_SECONDS
            )
        except (grpc.RpcError, ValueError):
            # ValueError: the channel was exchanged under the call.
            return False
        self._limits = {
            model.name: model.default_timeout_ms / 1000
            for model in answer.models
            if model.default_timeout_ms
        }
        return bool(answer.models)
