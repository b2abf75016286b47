"""MembershipService: protos to domain and back."""

from __future__ import annotations

from typing import Any

from sealward.api.gateway.v1 import membership_pb2 as pb
from sealward.api.gateway.v1 import membership_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority
from services.gateway.control import UNDO
from services.gateway.memberships import Memberships, digest
from services.gateway.subjects import Subject, Subjects


class MembershipServicer(pb_grpc.MembershipServiceServicer):
    """Reads and sets the parameters of memberships."""

    def __init__(self, authority: Authority, memberships: Memberships, subjects: Subjects) -> None:
        self._authority = authority
        self._memberships = memberships
        self._subjects = subjects

    def SetMembership(
        self, request: pb.SetMembershipRequest, context: Any
    ) -> pb.SetMembershipResponse:
        """Set. The record names the user and the digests of what was and what is."""
        caller = self._authority.admit(context)
        call = call_of(context)
        asked = request.membership
        user = self._subjects.named(asked.user)
        call.attributes[names.TARGET] = user.name
        if caller.session is not None and caller.session.user_id == user.id:
            raise SealwardError(Reason.POLICY_DENIED, "nobody sets their own parameters")
        if asked.role not in user.roles:
            raise SealwardError(Reason.FIELD_INVALID, "the user has no such role", field="role")
        parameters = dict(asked.parameters)
        before = self._memberships.set(user.id, asked.role, parameters)
        call.attributes[names.CHANGE_BEFORE] = digest(before)
        call.attributes[names.CHANGE_AFTER] = digest(parameters)
        call.attributes[UNDO] = lambda: self._memberships.set(user.id, asked.role, before)
        return pb.SetMembershipResponse(membership=self._membership(user, asked.role))

    def ListMemberships(
        self, request: pb.ListMembershipsRequest, context: Any
    ) -> pb.ListMembershipsResponse:
        """List."""
        self._authority.admit(context)
        named = [self._subjects.named(request.user)] if request.user else []
        users = named or self._subjects.all()
        found = [self._membership(user, role) for user in users for role in user.roles]
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListMembershipsResponse(memberships=found)

    def _membership(self, user: Subject, role: str) -> pb.Membership:
        parameters = self._memberships.get(user.id, role)
        return pb.Membership(user=user.name, role=role, parameters=parameters)
