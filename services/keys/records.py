"""What the keys service records: every key made or opened, every certificate, every refusal.

A record is on the disk before the answer leaves; when it cannot be written there is no answer.
Refusals are recorded up to ten a second an identity, so that nobody fills the disk with them; the
next record after that says for how many refusals it stands. Reading the status, the trust bundle or
the lists of certificates leaves a record when it is refused only: they hold nothing that is not
known in the deployment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from google.protobuf.message import Message

from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from sealward.kit.reasons import Code, Reason

_SERVICE = "/sealward.api.keys.v1.KeysService"
_AUTHORITY = "/sealward.api.keys.v1.AuthorityService"
_ROTATION = "/sealward.api.keys.v1.RotationService"
_TRUST = "/sealward.api.keys.v1.TrustService"
_BACKUP = "/sealward.api.keys.v1.BackupService"
_DESTRUCTION = "/sealward.api.keys.v1.DestructionService"
EVENTS: Mapping[str, str] = MappingProxyType(
    {
        f"{_SERVICE}/CreateBranchKey": "keys.branch-create",
        f"{_SERVICE}/OpenBranchKey": "keys.branch-open",
        f"{_SERVICE}/IssueCertificate": "keys.certificate",
        f"{_ROTATION}/RotateKey": "keys.rotate",
        f"{_ROTATION}/RewrapKeys": "keys.rewrap",
        f"{_ROTATION}/ConfirmRewrap": "keys.rewrap-confirm",
        f"{_ROTATION}/RetireKey": "keys.retire",
        f"{_AUTHORITY}/RotateAuthority": "keys.ca-rotate",
        f"{_AUTHORITY}/RenewCertificates": "keys.certificates-renew",
        "/sealward.api.common.v1.HolderService/Rewrap": "keys.rewrap-pass",
        f"{_TRUST}/Revoke": "keys.revoke",
        f"{_TRUST}/CreateJoinToken": "keys.join-token",
        f"{_BACKUP}/CreateBackup": "keys.backup",
        f"{_BACKUP}/RecordDrill": "keys.drill",
        f"{_DESTRUCTION}/RequestDestruction": "keys.destroy-request",
        f"{_DESTRUCTION}/ApproveDestruction": "keys.destroy-approve",
        f"{_DESTRUCTION}/CancelDestruction": "keys.destroy-cancel",
    }
)
# Recorded by their servicer before they take effect; here only when they fail.
_BEFORE = frozenset(
    {
        "keys.retire", "keys.drill", "keys.destroy-request", "keys.destroy-approve",
        "keys.destroy-cancel",
    }
)  # fmt: skip
_DENIED = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED})


class Recorder(Protocol):
    """Where events go (sealward.kit.recorder.Recorder)."""

    def record(self, event_type: str, outcome: str, **attributes: Any) -> bytes:
        """Record an event durably; raise SealwardError AUDIT_UNAVAILABLE."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float
    suppressed: int = 0


class RefusalLimit:
    """At most so many recorded refusals a second for each name; thread-safe."""

    def __init__(
        self,
        rate: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        capacity: int = 10_000,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, name: str) -> int:
        """Return how many refusals the next record stands for; 0 = do not record this one."""
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get(name)
            if bucket is None:
                if len(self._buckets) >= self._capacity:
                    self._buckets.clear()
                bucket = self._buckets[name] = _Bucket(self._rate, now)
            bucket.tokens = min(self._rate, bucket.tokens + (now - bucket.filled) * self._rate)
            bucket.filled = now
            if bucket.tokens < 1.0:
                bucket.suppressed += 1
                return 0
            bucket.tokens -= 1.0
            stands_for, bucket.suppressed = bucket.suppressed + 1, 0
            return stands_for


class CallRecords:
    """Stands around every call of the service (sealward.kit.chain.Around)."""

    def __init__(self, recorder: Recorder, limit: RefusalLimit) -> None:
        self._recorder = recorder
        self._limit = limit

    def __call__(self, call: ControlCall, proceed: Callable[[], Message]) -> Message:
        """Record the call and return its response; raise what `proceed` raises."""
        started = time.time_ns()
        try:
            response = proceed()
        except SealwardError as error:
            self._refused(call, error, started)
            raise
        except Exception:
            self._refused(call, SealwardError(Reason.INTERNAL, ""), started)
            raise
        event = EVENTS.get(call.method)
        if event is not None and event not in _BEFORE:
            self._recorder.record(
                event, "ok", start_unix_nano=started, code=Code.OK.name, **about_call(call)
            )
        return response

    def _refused(self, call: ControlCall, error: SealwardError, started: int) -> None:
        stands_for = self._limit.admit(call.peer.identity.uri)
        if not stands_for:
            return
        self._recorder.record(
            EVENTS.get(call.method, "access.denied"),
            "denied" if error.code in _DENIED else "failed",
            start_unix_nano=started,
            code=error.code.name,
            reason=error.reason.name,
            **{**about_call(call), "count": stands_for},
        )


def about_call(call: ControlCall) -> dict[str, Any]:
    """What the servicer left about a call (`target`, `count` and the like), and who made it."""
    return {
        **call.attributes,
        **about_actor(call.peer.identity),
        "actor_cert": call.peer.spki_sha256.hex(),
        "rpc_method": call.method,
    }


def about_actor(identity: Identity) -> dict[str, str | None]:
    """The attributes that say who acted."""
    return {"actor_id": identity.name, "actor_kind": identity.kind}
