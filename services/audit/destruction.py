"""DestructionService: whether keys may be destroyed, as far as the log knows. Proto to domain.

A legal hold on anything of a tenant holds every key of the tenant: what of it is evidence cannot be
told from here. Keys of the log itself go only when every log of the tenant was purged, so that a
destruction never shortens the retention; what it adds is that copies of those logs, made elsewhere,
open no more.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from sealward.api.audit.v1 import destruction_pb2 as pb
from sealward.api.audit.v1 import destruction_pb2_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.audit.entry import DEFAULT_TENANT, MAX_PATIENT_BYTES
from services.audit.events import OwnEvents
from services.audit.holds import Holds
from services.audit.patientdestruction import PatientDestruction
from services.audit.patients import PURPOSE as PATIENTS
from services.audit.rollover import Rollover

_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_WAIT_SECONDS = 5.0


class DestructionServicer(destruction_pb2_grpc.DestructionServiceServicer):
    """See the proto. `changes` is the lock that the placing of a hold takes."""

    def __init__(
        self,
        rollover: Rollover,
        holds: Holds,
        events: OwnEvents,
        changes: threading.Lock,
        patients: PatientDestruction,
    ) -> None:
        self._rollover = rollover
        self._patients = patients
        self._holds = holds
        self._events = events
        self._changes = changes

    def PermitDestruction(
        self, request: pb.PermitDestructionRequest, context: grpc.ServicerContext
    ) -> pb.PermitDestructionResponse:
        """Look at holds and retention, and record the permission."""
        if not _ID.fullmatch(request.id) or not _NAME.fullmatch(request.purpose):
            raise SealwardError(Reason.FIELD_INVALID, "id or purpose is not one", field="id")
        if not _NAME.fullmatch(request.tenant):
            raise SealwardError(Reason.FIELD_INVALID, "tenant is not one", field="tenant")
        call = call_of(context)
        call.attributes[names.TARGET] = f"{request.id} {request.tenant}/{request.purpose}"
        with self._change():
            if request.purpose == PATIENTS:
                self._patients.check(request.tenant, request.resource)
            else:
                self._check(request.tenant, request.purpose)
            if not request.look:
                self._events.before(
                    call, "audit.destroy-permit", {names.TARGET: call.attributes[names.TARGET]}
                )
        return pb.PermitDestructionResponse()

    def NamePatient(
        self, request: pb.NamePatientRequest, context: grpc.ServicerContext
    ) -> pb.NamePatientResponse:
        """Record an event that names a patient."""
        tenant = self._rollover.shards.of(request.tenant or DEFAULT_TENANT).tenant
        if not request.patient or len(request.patient.encode()) > MAX_PATIENT_BYTES:
            raise SealwardError(Reason.FIELD_INVALID, "name a patient", field="patient")
        sealed, older = self._patients.count(tenant, request.patient)
        if not sealed and not older:
            raise SealwardError(
                Reason.NOT_FOUND, "no log of the tenant has an event about this patient",
                field="patient",
            )  # fmt: skip
        event_id = self._events.name_patient(call_of(context), request.patient, tenant)
        return pb.NamePatientResponse(
            resource=f"patient/{event_id.hex()}", tenant=tenant, sealed=sealed, older=older
        )

    def DestroyPatient(
        self, request: pb.DestroyPatientRequest, context: grpc.ServicerContext
    ) -> pb.DestroyPatientResponse:
        """Destroy the keys of a patient's references."""
        if not _ID.fullmatch(request.id):
            raise SealwardError(Reason.FIELD_INVALID, "id is not one", field="id")
        call = call_of(context)
        target = f"{request.id} {request.tenant}/{PATIENTS}/{request.resource}"
        with self._change():
            # Read before anything is recorded: it may be no resource at all.
            reference = self._patients.reference(request.tenant, request.resource)
            self._events.before(call, "audit.patient-destroy", {names.TARGET: target})
            keys = self._patients.destroy(request.tenant, reference)
        return pb.DestroyPatientResponse(keys=keys)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Hold the lock of changes: between a look at the holds and what follows none is placed."""
        if not self._changes.acquire(timeout=_WAIT_SECONDS):
            raise SealwardError(
                Reason.AUDIT_UNAVAILABLE, "another change of the logs is under way", retry_after=1.0
            )
        try:
            yield
        finally:
            self._changes.release()

    def _check(self, tenant: str, purpose: str) -> None:
        if self._rollover.places.others(tenant) and tenant not in self._rollover.shards.tenants:
            raise _held("the tenant's logs are there and not opened: SEALWARD_AUDIT_TENANTS")
        if any(hold.scope.tenant == tenant for hold in self._holds.standing()):
            raise _held("a legal hold covers something of the tenant")
        if purpose.startswith("audit-") and tenant in self._rollover.shards.tenants:
            left = [s for s in self._rollover.shards.all(tenant) if s.state != "purged"]
            if left:
                raise _held(f"{len(left)} of its logs are not purged: they have to be kept")


def _held(why: str) -> SealwardError:
    return SealwardError(Reason.DESTRUCTION_HELD, f"nothing is destroyed: {why}", field="tenant")
