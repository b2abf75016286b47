"""The audit service's own events: who read the log, who was refused, what did not fit.

Reading is recorded before anything is handed out; when it cannot be recorded, nothing is.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import structlog
from google.protobuf.message import Message

from sealward.kit import attributes as names
from sealward.kit.chain import ControlCall
from sealward.kit.clock import Reading
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from sealward.kit.reasons import Code, Reason
from sealward.kit.recorder import new_event_id
from sealward.kit.spans import (
    STATUS_ERROR,
    STATUS_OK,
    AttributeValue,
    SpanHead,
    SpanKind,
    attribute,
)
from sealward.tlog.leaf import NO_BINDING
from services.audit.committer import Committer
from services.audit.entry import Candidate, Maker
from services.audit.log import Placed
from services.audit.metrics import AuditMetrics
from services.audit.producers import Gap

_AUDIT = "/sealward.api.audit.v1.AuditService"
_REVIEW = "/sealward.api.audit.v1.ReviewService"
_TYPES: Mapping[str, str] = {
    f"{_AUDIT}/QueryEvents": "audit.query",
    f"{_AUDIT}/GetEvent": "audit.read",
    f"{_AUDIT}/GetReceipt": "log.receipt",
    f"{_AUDIT}/GetConsistency": "log.consistency",
    "/sealward.api.audit.v1.ExportService/ExportEvents": "audit.export",
    "/sealward.api.audit.v1.ReconcileService/ReadTrail": "audit.reconcile",
    f"{_REVIEW}/ReportDisclosures": "audit.report",
    f"{_REVIEW}/SuspendAccounting": "audit.suspend",
    f"{_REVIEW}/ListBreakGlass": "audit.report",
    f"{_REVIEW}/SignOff": "audit.review",
    f"{_REVIEW}/ListBursts": "audit.report",
    f"{_REVIEW}/ListActivity": "audit.report",
    f"{_REVIEW}/ListUse": "audit.report",
    "/sealward.api.common.v1.HolderService/Rewrap": "keys.rewrap-pass",
    "/sealward.api.audit.v1.LogAdminService/ListLogs": "audit.logs",
    "/sealward.api.audit.v1.LogAdminService/ListHolds": "audit.logs",
}
# Recorded by their servicer before they take effect (`before`); here only when they fail.
_CHANGES: Mapping[str, str] = {
    f"/sealward.api.audit.v1.{method}": event_type
    for method, event_type in {
        "LogAdminService/Freeze": "audit.freeze",
        "LogAdminService/RotateLogKey": "log.key",
        "LogAdminService/Archive": "audit.archive",
        "LogAdminService/Purge": "audit.purge",
        "LogAdminService/PlaceHold": "audit.hold",
        "LogAdminService/ReleaseHold": "audit.release",
        "LogAdminService/Reindex": "audit.reindex",
        "DestructionService/PermitDestruction": "audit.destroy-permit",
        "DestructionService/NamePatient": "audit.patient-name",
        "DestructionService/DestroyPatient": "audit.patient-destroy",
    }.items()
} | {"/sealward.api.audit.v1.AttestService/AttestReport": "check.report"}
# Proofs tell nothing of an event. The gateway records these calls itself, with the caller's name.
_RECORDED_BY_GATEWAY = frozenset({"log.receipt", "log.consistency"})
_DENIED = frozenset({Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED})

# Refusals recorded one by one, a second and identity. Above it they are counted, so that nobody
# can fill the log by knocking.
_DENIED_RATE = 10.0
_IDENTITIES = 4096
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
EVENT_ID_KEY, LOG_INDEX_KEY = "sealward-event-id", "sealward-log-index"


class _Allowance:
    """A token bucket, and how many found it empty since the last summary."""

    __slots__ = ("at", "left", "missed")

    def __init__(self, now: float) -> None:
        self.at = now
        self.left = _DENIED_RATE
        self.missed = 0

    def take(self, now: float) -> bool:
        self.left = min(_DENIED_RATE, self.left + (now - self.at) * _DENIED_RATE)
        self.at = now
        if self.left < 1.0:
            self.missed += 1
            return False
        self.left -= 1.0
        return True


class OwnEvents:
    """Makes the own events and appends them. Thread-safe. Also the `around` of the server."""

    def __init__(
        self,
        committer: Callable[[], Committer],
        maker: Maker,
        identity: Identity,
        metrics: AuditMetrics,
        logger: structlog.typing.FilteringBoundLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._committer = committer
        self._maker = maker
        self._identity = identity
        self._metrics = metrics
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._allowances: dict[str, _Allowance] = {}

    def __call__(self, call: ControlCall, proceed: Callable[[], Message]) -> Message:
        """Record a control call with its outcome (sealward.kit.chain.Around)."""
        started = time.time_ns()
        try:
            response = proceed()
        except SealwardError as error:
            self._record(call, started, error)
            raise
        except Exception:
            self._record(call, started, SealwardError(Reason.INTERNAL, ""))
            raise
        self._record(call, started, None)
        return response

    def conflicts(self, candidates: Sequence[Candidate]) -> None:
        """Record that event ids came again with other content: one event for all of them."""
        self._logger.error("log.conflict", count=len(candidates))
        self._later(
            "audit.conflict",
            "denied",
            {
                names.REASON: Reason.ALREADY_EXISTS.name,
                names.TARGET: candidates[0].key.event_id.hex(),
                names.COUNT: len(candidates),
            },
        )

    def before(
        self,
        call: ControlCall,
        event_type: str,
        values: Mapping[str, AttributeValue],
        patient: str = "",
    ) -> None:
        """Record a change that a call makes, before it takes effect; raise SealwardError."""
        self._append(call, event_type, "ok", {**_caller(call), names.CODE: "OK", **values}, patient)

    def name_patient(self, call: ControlCall, patient: str, tenant: str) -> bytes:
        """Record, in the tenant's own log, an event that names a patient; return its id."""
        values = {**_caller(call), names.CODE: "OK"}
        return self._append(call, "audit.patient-name", "ok", values, patient, tenant=tenant)

    def bound(
        self,
        call: ControlCall,
        event_type: str,
        values: Mapping[str, AttributeValue],
        binding: bytes,
    ) -> bytes:
        """Record what a call states, bound to its message; return the event id.

        Raise SealwardError.
        """
        about = {**_caller(call), names.CODE: "OK", **values}
        return self._append(call, event_type, "ok", about, binding=binding)

    def by_itself(self, event_type: str, target: str) -> None:
        """Record a change that the service makes by itself, before it does; raise SealwardError."""
        self._submit(self._make(event_type, "ok", {names.TARGET: target}))

    def gap(self, gap: Gap) -> None:
        """Record numbers of a producer that never came, or came after all; raise SealwardError."""
        self._submit(
            self._make(
                "audit.gap",
                "ok" if gap.closed else "failed",
                {
                    names.TARGET: f"{gap.producer}/{_instance(gap)}/{gap.first}-{gap.last}",
                    names.COUNT: gap.count,
                },
            )
        )

    def fork(self, origin: str, cosigned: int) -> None:
        """Record that a witness has cosigned what a log does not continue; raise SealwardError."""
        values: dict[str, AttributeValue] = {
            names.TARGET: origin, names.COUNT: cosigned, names.REASON: Reason.LOG_STATE.name,
        }  # fmt: skip
        self._submit(self._make("audit.fork", "failed", values))

    def clock(self, reading: Reading, origin: str, size: int) -> None:
        """Record how the clock stands beside a checkpoint of this size; raise SealwardError."""
        values: dict[str, AttributeValue] = {
            names.TARGET: origin,
            names.COUNT: size,
            names.CLOCK_SOURCE: reading.source,
            names.CLOCK_SYNCHRONISED: reading.synchronised,
        }
        if reading.offset_us is not None:
            values[names.CLOCK_OFFSET] = reading.offset_us
        if reading.error_us is not None:
            values[names.CLOCK_ERROR] = reading.error_us
        self._submit(self._make("audit.clock", "ok", values))

    def begun(self, size: int) -> None:
        """Record that the service started with a log of `size` entries; raise SealwardError."""
        self._submit(self._make("audit.start", "ok", {names.COUNT: size}))

    def summarise(self) -> None:
        """Record the refusals that were only counted. To be called once a minute."""
        with self._lock:
            missed = {uri: a.missed for uri, a in self._allowances.items() if a.missed}
            self._allowances.clear()
        for uri, count in missed.items():
            self._later("access.denied", "denied", {names.ACTOR_ID: uri, names.COUNT: count})

    def _record(self, call: ControlCall, started: int, error: SealwardError | None) -> None:
        identity = call.peer.identity
        denied = error is not None and error.code in _DENIED
        known = _CHANGES.get(call.method) if error else None
        event_type = "access.denied" if denied else known or _TYPES.get(call.method)
        if event_type is None or (
            event_type in _RECORDED_BY_GATEWAY and identity.role == "service/gateway"
        ):
            return
        if denied and not self._may_record(identity):
            self._metrics.denied_unrecorded.inc()
            return
        values: dict[str, Any] = {
            **_caller(call),
            names.CODE: (error.code if error else Code.OK).name,
            **call.attributes,
        }
        if error is not None:
            values[names.REASON] = error.reason.name
        outcome = "denied" if denied else "failed" if error else "ok"
        patient = str(values.pop(names.PATIENT_REFERENCE, ""))
        self._append(call, event_type, outcome, values, patient, started)

    def _append(
        self,
        call: ControlCall,
        event_type: str,
        outcome: str,
        values: Mapping[str, AttributeValue],
        patient: str = "",
        started: int | None = None,
        binding: bytes = NO_BINDING,
        tenant: str = "",
    ) -> bytes:
        candidate = self._make(event_type, outcome, values, started, patient, binding, tenant)
        placed = self._submit(candidate)
        named = {EVENT_ID_KEY: candidate.key.event_id.hex(), LOG_INDEX_KEY: str(placed.index)}
        # A change that fails after it was recorded has two events: the answer names the last.
        call.trailers[:] = [pair for pair in call.trailers if pair[0] not in named]
        call.trailers += named.items()
        return candidate.key.event_id

    def _may_record(self, identity: Identity) -> bool:
        now = self._clock()
        with self._lock:
            allowance = self._allowances.get(identity.uri)
            if allowance is None:
                if len(self._allowances) >= _IDENTITIES:
                    return False
                allowance = self._allowances[identity.uri] = _Allowance(now)
            return allowance.take(now)

    def _make(
        self,
        event_type: str,
        outcome: str,
        values: Mapping[str, AttributeValue],
        started: int | None = None,
        patient: str = "",
        binding: bytes = NO_BINDING,
        tenant: str = "",
    ) -> Candidate:
        event_id = new_event_id()
        ended = time.time_ns()
        parts = [
            attribute(names.EVENT_TYPE, event_type),
            attribute(names.EVENT_ID, event_id.hex()),
            attribute(names.OUTCOME, outcome),
            *(attribute(name, value) for name, value in values.items()),
            STATUS_OK if outcome == "ok" else STATUS_ERROR,
        ]
        # The clock may be set back between the two.
        span = SpanHead(event_type, SpanKind.SERVER).build(
            min(ended, started or ended), ended, parts
        )
        return self._maker.own(event_id, span, self._identity, patient, binding, tenant)

    def _submit(self, candidate: Candidate) -> Placed:
        result = self._committer().submit((candidate,))[0]
        if isinstance(result, SealwardError):
            raise result
        return result

    def _later(self, event_type: str, outcome: str, values: Mapping[str, AttributeValue]) -> None:
        try:
            self._committer().submit_later((self._make(event_type, outcome, values),))
        except SealwardError as error:
            self._logger.error("event.lost", name=event_type, reason=error.reason.name)


def _instance(gap: Gap) -> str:
    """Return the instance as it goes into an event: a workload may call it anything."""
    if _INSTANCE.fullmatch(gap.instance):
        return gap.instance
    return f"sha256:{sha256(gap.instance.encode()).hexdigest()[:32]}"


def _caller(call: ControlCall) -> dict[str, AttributeValue]:
    """Return what is said of who makes a call."""
    identity = call.peer.identity
    return {
        names.ACTOR_ID: identity.name,
        names.ACTOR_KIND: identity.kind,
        names.ACTOR_CERT: call.peer.spki_sha256.hex(),
        names.METHOD: call.method,
    }
