"""What the audit service has to say about destruction, asked over the wire. It fails closed."""

from __future__ import annotations

from typing import Any

import grpc

from sealward.api.audit.v1 import destruction_pb2 as pb
from sealward.api.audit.v1.destruction_pb2_grpc import DestructionServiceStub
from sealward.api.common.v1.holder_pb2 import RewrapRequest
from sealward.api.common.v1.holder_pb2_grpc import HolderServiceStub
from sealward.kit.errors import SealwardError
from sealward.kit.keysclient import ChannelSource
from sealward.kit.reasons import Reason
from sealward.kit.status import reason_of
from services.keys.destruction import Subject

_CALL_SECONDS = 30.0
_LONG_SECONDS = 3600.0
_PASSED_ON = frozenset(
    {
        Reason.DESTRUCTION_HELD, Reason.DESTRUCTION_STATE, Reason.LOG_STATE, Reason.NOT_FOUND,
        Reason.LOG_PURGED, Reason.SEAL_BROKEN, Reason.FIELD_INVALID,
    }
)  # fmt: skip
_TEXTS = {
    Reason.DESTRUCTION_HELD: "a legal hold or the retention period covers what would be unreadable:"
    " sealward audit hold list, sealward audit logs list; events about a patient are kept"
    " SEALWARD_AUDIT_PATIENT_YEARS",
    Reason.NOT_FOUND: "audit knows no such tenant or patient",
}


class AuditGuard:
    """Guard (services.keys.destroying) over RPCs. Thread-safe."""

    def __init__(self, channels: ChannelSource) -> None:
        self._channels = channels

    def permit(self, subject: Subject, *, look: bool) -> None:
        """See Guard."""
        self._ask(
            "PermitDestruction",
            pb.PermitDestructionRequest(
                id=subject.id, tenant=subject.tenant, purpose=subject.purpose,
                resource=subject.resource, look=look,
            ),
        )  # fmt: skip

    def destroy_patient(self, subject: Subject) -> int:
        """See Guard."""
        request = pb.DestroyPatientRequest(
            id=subject.id, tenant=subject.tenant, resource=subject.resource
        )
        answer: pb.DestroyPatientResponse = self._ask("DestroyPatient", request, _LONG_SECONDS)
        return answer.keys

    def move_on(self, subject: Subject) -> None:
        """See Guard."""
        request = RewrapRequest(tenant=subject.tenant, purpose=subject.purpose)
        try:
            stub = HolderServiceStub(self._channels.get())
            for _ in stub.Rewrap(request, timeout=_LONG_SECONDS):
                pass
        except (grpc.RpcError, ValueError) as error:
            raise _as_error(error) from None

    def _ask(self, method: str, request: object, seconds: float = _CALL_SECONDS) -> Any:
        try:
            call = getattr(DestructionServiceStub(self._channels.get()), method)
            answer = call(request, timeout=seconds)
        except (grpc.RpcError, ValueError) as error:
            raise _as_error(error) from None
        return answer


def _as_error(error: Exception) -> SealwardError:
    # ValueError: the channel was exchanged under the call.
    reason = reason_of(error) if isinstance(error, grpc.Call) else None
    if reason in _PASSED_ON:
        return SealwardError(reason, _TEXTS.get(reason, f"audit refuses it: {reason.name}"))
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE,
        "audit does not say whether a legal hold covers it: nothing is destroyed",
        retry_after=1.0,
    )
