"""DeidService: protos to domain and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.api.audit.v1.export_pb2 import OpenedSpan
from sealward.api.gateway.v1 import deid_pb2 as pb
from sealward.api.gateway.v1 import deid_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority, deadline_of, note
from services.gateway.remote import ask
from services.gateway.surrogates import Item, Surrogates


class DeidServicer(pb_grpc.DeidServiceServicer):
    """Draws codes and leads them back. `audit` is the channel to the log."""

    def __init__(
        self, authority: Authority, surrogates: Surrogates, audit: Callable[[], grpc.Channel]
    ) -> None:
        self._authority = authority
        self._surrogates = surrogates
        self._audit = audit

    def DrawCodes(self, request: pb.DrawCodesRequest, context: Any) -> pb.DrawCodesResponse:
        """Draw. The record names project and number."""
        self._authority.admit(context)
        items = [Item(one.kind, one.identifier, one.event_id) for one in request.items]
        codes = self._surrogates.codes(request.project, items)
        call_of(context).attributes[names.TARGET] = request.project
        call_of(context).attributes[names.COUNT] = len(codes)
        return pb.DrawCodesResponse(codes=codes)

    def Reidentify(self, request: pb.ReidentifyRequest, context: Any) -> pb.ReidentifyResponse:
        """Lead one code back. The record is about the patient, as every look at a patient is."""
        caller = self._authority.admit(context)
        item = self._surrogates.open(request.project, request.code)
        call = call_of(context)
        call.attributes[names.TARGET] = f"{request.project}/{request.code}"
        reference = self._reference(item, deadline_of(context)) if item.kind == "patient" else ""
        if reference:
            note(call, replace(caller, headers=replace(caller.headers, patient=reference)))
        return pb.ReidentifyResponse(
            item=pb.DeidItem(kind=item.kind, identifier=item.identifier, event_id=item.event_id),
            patient=reference,
        )

    def ListProjects(
        self, _request: pb.ListProjectsRequest, context: Any
    ) -> pb.ListProjectsResponse:
        """List."""
        self._authority.admit(context)
        found = [
            pb.DeidProject(name=project.name, created=project.created, codes=project.codes)
            for project in self._surrogates.projects()
        ]
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListProjectsResponse(projects=found)

    def DropProject(self, request: pb.DropProjectRequest, context: Any) -> pb.DropProjectResponse:
        """Destroy. It stays destroyed, recorded or not: there is no way back by design."""
        self._authority.admit(context)
        codes = self._surrogates.drop(request.project)
        call_of(context).attributes[names.TARGET] = request.project
        call_of(context).attributes[names.COUNT] = codes
        return pb.DropProjectResponse(codes=codes)

    def _reference(self, item: Item, deadline: float) -> str:
        """Return the patient's reference of an event; empty when it does not open any more."""
        try:
            answer = ask(
                AuditServiceStub(self._audit()).GetEvent,
                audit_pb2.GetEventRequest(event_id=item.event_id),
                deadline=deadline,
                unavailable=Reason.AUDIT_UNAVAILABLE,
            )
            span = OpenedSpan.FromString(answer.span)
        except SealwardError as error:
            if error.reason is not Reason.NOT_FOUND:
                raise
            return ""
        except DecodeError:
            return ""
        found = [a.value.string_value for a in span.attributes if a.key == names.PATIENT_REFERENCE]
        return found[0] if found else ""
