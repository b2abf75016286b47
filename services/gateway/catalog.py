"""What the gateway knows of the models: names, versions, how long a call may take by default."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import grpc
import structlog

from sealward.api.inference.v1.inference_pb2 import ListModelsRequest
from sealward.api.inference.v1.inference_pb2_grpc import InferenceServiceStub
from services.gateway import events

_EVERY_SECONDS = 5.0
_RETRY_SECONDS = 0.2
_TIMEOUT_SECONDS = 2.0


class Catalog:
    """The models, asked of inference again and again.

    An old answer is kept while inference is away: nothing is decided by it but a time limit, and
    which names a record may repeat.
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
        self._versions: Mapping[str, frozenset[str]] = {}
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

    def knows(self, model: str) -> bool:
        """Whether inference lists a model of this name, ready or not."""
        return model in self._versions

    @property
    def names(self) -> list[str]:
        """The models that inference lists, sorted."""
        return sorted(self._versions)

    def attributes(self, model: str, version: str) -> bytes:
        """Encode name and version for the record of a call that did not run.

        Only what inference lists: any other text is the caller's own and may say anything.
        """
        versions = self._versions.get(model)
        if versions is None:
            return b""
        return events.model(model, version if version in versions else "")

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
        versions: dict[str, set[str]] = {}
        for model in answer.models:
            versions.setdefault(model.name, set()).add(model.version)
        self._versions = {name: frozenset(found) for name, found in versions.items()}
        self._limits = {
            model.name: model.default_timeout_ms / 1000
            for model in answer.models
            if model.default_timeout_ms
        }
        return bool(answer.models)
