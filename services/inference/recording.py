"""What the inference service writes into the audit log of its own accord."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.recorder import Recorder
from services.inference.registry import Entry, State


class InferenceRecords:
    """Records the opening of models and refused calls. The gateway records the predictions."""

    def __init__(self, recorder: Recorder, runtime_digest: str) -> None:
        self._recorder = recorder
        self._runtime_digest = runtime_digest

    def opened(self, entry: Entry, started: int) -> None:
        """Record that a model was opened, or failed; raise SealwardError when that cannot be."""
        manifest = entry.manifest
        ready = entry.state is State.READY
        self._recorder.record(
            "model.load",
            "ok" if ready else "failed",
            start_unix_nano=started,
            reason=None if ready else Reason.MODEL_NOT_READY.name,
            model_name=entry.name,
            model_version=entry.version,
            model_digest=manifest.digest if manifest else None,
            determinism=manifest.deterministic if manifest else None,
            data_category=manifest.data.category if manifest else None,
            data_origin=manifest.data.origin if manifest else None,
            runtime_digest=self._runtime_digest,
        )

    def around(self, call: ControlCall, proceed: Callable[[], Message]) -> Message:
        """Record every refused control call; those that the gateway makes in passing are not."""
        try:
            return proceed()
        except SealwardError as error:
            if error.reason is not Reason.DRAINING:
                self._recorder.record(
                    "access.denied",
                    "denied",
                    reason=error.reason.name,
                    code=int(error.code),
                    actor_id=call.peer.identity.uri,
                    actor_kind=call.peer.identity.kind,
                    actor_cert=call.peer.spki_sha256.hex(),
                    target=call.method,
                )
            raise
