"""AccessService: grants for a while, and breaking the glass. Protos to domain and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from sealward.api.gateway.v1 import access_pb2 as pb
from sealward.api.gateway.v1 import access_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway import emergency
from services.gateway.authority import Authority, Caller, note
from services.gateway.control import UNDO
from services.gateway.grants import STATES, Access, Grants, check_ticket
from services.gateway.metadata import check_patient_reference
from services.gateway.session import Session
from services.gateway.sessions import SessionStore

_DECIDE = "ApproveAccess"


class AccessServicer(pb_grpc.AccessServiceServicer):
    """See the protos. `alarm` is told the reason of every broken glass, before it is answered."""

    def __init__(
        self,
        authority: Authority,
        grants: Grants,
        store: SessionStore,
        log: structlog.typing.FilteringBoundLogger,
        *,
        break_glass_seconds: int,
        alarm: Callable[[str], None],
    ) -> None:
        self._authority = authority
        self._grants = grants
        self._store = store
        self._log = log
        self._seconds = break_glass_seconds
        self._alarm = alarm

    def RequestAccess(
        self, request: pb.RequestAccessRequest, context: Any
    ) -> pb.RequestAccessResponse:
        """Ask."""
        session = _session_of(self._authority.admit(context))
        made = self._grants.request(
            session.user_id, session.user, request.model, request.purpose, request.seconds,
            request.ticket,
        )  # fmt: skip
        call = call_of(context)
        call.attributes[names.TARGET] = made.id
        call.attributes[UNDO] = lambda: self._grants.withdraw(made.id)
        return pb.RequestAccessResponse(access=_access(made))

    def ListAccess(self, request: pb.ListAccessRequest, context: Any) -> pb.ListAccessResponse:
        """List one's own, or everybody's."""
        caller = self._authority.admit(context)
        if not set(request.states) <= set(STATES):
            raise SealwardError(
                Reason.FIELD_INVALID, f"a state is one of {', '.join(STATES)}", field="states"
            )
        everybody = request.everybody or caller.local
        if everybody and not self._authority.may(caller, _DECIDE):
            raise SealwardError(Reason.POLICY_DENIED, "no rule permits this role to see all")
        user_id = "" if everybody else _session_of(caller).user_id
        found = self._grants.all(user_id, request.states)
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListAccessResponse(access=[_access(access) for access in found])

    def ApproveAccess(
        self, request: pb.ApproveAccessRequest, context: Any
    ) -> pb.ApproveAccessResponse:
        """Grant somebody else's request."""
        caller = self._authority.admit(context)
        before = self._before(request.id, context)
        decider = "" if caller.session is None else caller.session.user_id
        done = self._grants.approve(request.id, _person(caller), decider)
        self._undo(before, context)
        return pb.ApproveAccessResponse(access=_access(done))

    def DenyAccess(self, request: pb.DenyAccessRequest, context: Any) -> pb.DenyAccessResponse:
        """Deny a request."""
        caller = self._authority.admit(context)
        before = self._before(request.id, context)
        done = self._grants.deny(request.id, _person(caller))
        self._undo(before, context)
        return pb.DenyAccessResponse(access=_access(done))

    def RevokeAccess(
        self, request: pb.RevokeAccessRequest, context: Any
    ) -> pb.RevokeAccessResponse:
        """End a grant: one's own, or anybody's by who may decide. It stays ended."""
        caller = self._authority.admit(context)
        before = self._before(request.id, context)
        own = caller.session is not None and before.user_id == caller.session.user_id
        if not own and not self._authority.may(caller, _DECIDE):
            # The same answer as for a grant that does not exist.
            raise SealwardError(
                Reason.NOT_FOUND, "there is no such access that is granted", field="id"
            )
        return pb.RevokeAccessResponse(
            access=_access(self._grants.revoke(request.id, _person(caller)))
        )

    def BreakGlass(self, request: pb.BreakGlassRequest, context: Any) -> pb.BreakGlassResponse:
        """Open a session for one patient and a short time, and tell everybody."""
        caller = self._authority.admit(context)
        session = _session_of(caller)
        call = call_of(context)
        if request.reason not in emergency.REASONS:
            raise SealwardError(
                Reason.FIELD_INVALID,
                f"a reason is one of {', '.join(emergency.REASONS)}",
                field="reason",
            )
        check_patient_reference(request.patient, "patient")
        check_ticket(request.ticket)
        note(call, replace(caller, headers=replace(caller.headers, patient=request.patient)))
        call.attributes[names.BREAK_GLASS] = True
        call.attributes[names.BREAK_GLASS_REASON] = request.reason
        token, opened = self._store.create(
            session.user_id, session.user, (emergency.ROLE,), call.peer.spki_sha256,
            session.generation, break_glass=request.reason, patient=request.patient,
            life_seconds=self._seconds,
        )  # fmt: skip
        call.attributes[names.TARGET] = opened.session_id
        call.attributes[UNDO] = lambda: self._store.end(opened)
        self._alarm(request.reason)
        self._log.warning("access.break-glass", name=opened.session_id, reason=request.reason)
        return pb.BreakGlassResponse(
            token=token, expires=opened.expires, session_id=opened.session_id
        )

    def _before(self, access_id: str, context: Any) -> Access:
        found = self._grants.get(access_id)
        if found is None:
            raise SealwardError(Reason.NOT_FOUND, "there is no such access", field="id")
        call_of(context).attributes[names.TARGET] = found.id
        return found

    def _undo(self, before: Access, context: Any) -> None:
        call_of(context).attributes[UNDO] = lambda: self._grants.put_back(before)


def _session_of(caller: Caller) -> Session:
    if caller.session is None:
        raise SealwardError(Reason.SESSION_MISSING, "log in as a user: access is a person's")
    return caller.session


def _person(caller: Caller) -> str:
    return f"{caller.identity.kind}/{caller.identity.name}"


def _access(access: Access) -> pb.Access:
    return pb.Access(
        id=access.id, user=access.user, model=access.model, purpose=access.purpose,
        seconds=access.seconds, ticket=access.ticket, state=access.state,
        requested=access.requested, decided=access.decided, expires=access.expires,
        decided_by=access.decided_by,
    )  # fmt: skip
