"""What the inference service writes into the audit log of its own accord."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.message import Message

from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Code, Reason
from sealward.kit.recorder import Recorder
from services.inference.registry import Entry, State

_DENIED = frozenset({Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED})
EVENTS: Mapping[str, str] = MappingProxyType(
    {"/sealward.api.common.v1.HolderService/Rewrap": "keys.rewrap-pass"}
)
"""What leaves a record when it succeeds too."""

_RATE = 10.0
_IDENTITIES = 1000


class RefusalLimit:
    """Ten recorded refusals a second for an identity; one that is over goes into the next's count.

    A caller that is refused without end can so fill neither the spool nor the log. Thread-safe;
    bounded, the identity that was quiet longest is forgotten.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Tokens left, when that was, and how many refusals were not recorded.
        self._seen: OrderedDict[str, tuple[float, float, int]] = OrderedDict()

    def admit(self, identity: str) -> int:
        """Return how many refusals a record made now stands for; 0 = make none."""
        now = self._clock()
        with self._lock:
            left, when, missed = self._seen.pop(identity, (_RATE, now, 0))
            left = min(_RATE, left + (now - when) * _RATE)
            stands_for = missed + 1 if left >= 1 else 0
            self._seen[identity] = (left - 1, now, 0) if stands_for else (left, now, missed + 1)
            while len(self._seen) > _IDENTITIES:
                self._seen.popitem(last=False)
            return stands_for


class InferenceRecords:
    """Records start and stop, the opening of models and refused calls.

    The gateway records the predictions, and what else it asks in the course of a caller's call.
    """

    def __init__(self, recorder: Recorder, runtime_digest: str, limit: RefusalLimit) -> None:
        self._recorder = recorder
        self._runtime_digest = runtime_digest
        self._limit = limit

    def service(self, event_type: str) -> None:
        """Record `service.start` or `service.stop`; raise SealwardError when that cannot be."""
        self._recorder.record(event_type, "ok", runtime_digest=self._runtime_digest)

    def opened(self, entry: Entry, started: int) -> None:
        """Record that a model was opened, or failed; raise SealwardError when that cannot be.

        `started`: when the opening began, nanoseconds since the epoch.
        """
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
        """Record changes and every refused control call (sealward.kit.chain.Around)."""
        started = time.time_ns()
        try:
            answer = proceed()
        except SealwardError as error:
            self._refused(call, error, started)
            raise
        event = EVENTS.get(call.method)
        if event is not None:
            self._recorder.record(
                event,
                "ok",
                start_unix_nano=started,
                code=Code.OK.name,
                **_caller(call),
            )
        return answer

    def _refused(self, call: ControlCall, error: SealwardError, started: int) -> None:
        identity = call.peer.identity
        stands_for = self._limit.admit(identity.uri)
        if not stands_for:
            return
        self._recorder.record(
            "access.denied",
            "denied" if error.code in _DENIED else "failed",
            start_unix_nano=started,
            code=error.code.name,
            reason=error.reason.name,
            count=stands_for,
            **_caller(call),
        )


def _caller(call: ControlCall) -> dict[str, Any]:
    identity = call.peer.identity
    return {
        "actor_id": identity.name,
        "actor_kind": identity.kind,
        "actor_cert": call.peer.spki_sha256.hex(),
        "rpc_method": call.method,
    }
