"""Every control call is recorded, whatever becomes of it, before it is answered.

A control call is everything that is not a prediction. Its record binds no message bytes: a login
or a new user carries a password, whose digest must not be anywhere.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import cast

import structlog
from google.protobuf.message import Message

from sealward.kit import attributes as names
from sealward.kit.chain import ControlCall
from sealward.kit.errors import SealwardError
from sealward.kit.identity import parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.kit.spans import AttributeValue, attribute
from services.gateway import events
from services.gateway.authority import CALLER, Caller
from services.gateway.denials import DenialLimit
from services.gateway.events import Event, EventWriter
from services.gateway.exchange import Exchange
from services.gateway.pipeline import audit_lost, receipt_trailers

_OIP = "/inference.GRPCInferenceService/"
_SESSION = "/sealward.api.gateway.v1.SessionService/"
_USER = "/sealward.api.gateway.v1.UserService/"
_FACTOR = "/sealward.api.gateway.v1.FactorService/"
_WORKLOAD = "/sealward.api.gateway.v1.WorkloadService/"
_OIDC = "/sealward.api.gateway.v1.OidcService/"
_ACCESS = "/sealward.api.gateway.v1.AccessService/"
_POLICY = "/sealward.api.gateway.v1.PolicyService/"
_DEID = "/sealward.api.gateway.v1.DeidService/"
_MEMBERSHIP = "/sealward.api.gateway.v1.MembershipService/"
_DESTRUCTION = "/sealward.api.gateway.v1.DestructionService/"
_LOG = "/sealward.api.gateway.v1.LogService/"

UNRECORDED = frozenset({f"{_OIP}ServerLive", f"{_OIP}ServerReady"})
"""What leaves no record, beside the health service: it says nothing about anybody's data."""

QUIET = frozenset({f"{_LOG}GetConsistency"})
"""What leaves a record only when it is refused or fails. A proof between two sizes is about nobody,
and recording it would make the log grow with every look at its growth."""

EVENT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        f"{_OIP}ModelReady": "model.ready",
        f"{_OIP}ServerMetadata": "server.metadata",
        f"{_OIP}ModelMetadata": "model.metadata",
        f"{_SESSION}Login": "session.login",
        f"{_SESSION}Logout": "session.logout",
        f"{_SESSION}ListSessions": "session.list",
        f"{_SESSION}RevokeSessions": "session.revoke",
        f"{_SESSION}WatchSession": "session.watch",
        f"{_USER}CreateUser": "user.create",
        f"{_USER}DisableUser": "user.disable",
        f"{_USER}SetRoles": "user.roles",
        f"{_USER}UnlockUser": "user.unlock",
        f"{_USER}ResetPassword": "user.password",
        f"{_USER}ListUsers": "user.list",
        f"{_USER}IssueUserCertificate": "user.certificate",
        f"{_FACTOR}ListFactors": "factor.list",
        f"{_FACTOR}BeginTotp": "factor.begin",
        f"{_FACTOR}ConfirmTotp": "factor.confirm",
        f"{_FACTOR}BeginWebauthn": "factor.begin",
        f"{_FACTOR}ConfirmWebauthn": "factor.confirm",
        f"{_FACTOR}BeginAssertion": "factor.challenge",
        f"{_FACTOR}RemoveWebauthn": "factor.remove",
        f"{_FACTOR}NewRecoveryCodes": "factor.recovery",
        f"{_FACTOR}RemoveFactors": "factor.remove",
        f"{_FACTOR}ResetFactors": "factor.reset",
        f"{_FACTOR}StepUp": "session.step-up",
        f"{_WORKLOAD}IssueToken": "session.token",
        f"{_WORKLOAD}RegisterClient": "client.register",
        f"{_WORKLOAD}ListClients": "client.list",
        f"{_WORKLOAD}RotateClientKeys": "client.rotate",
        f"{_WORKLOAD}DisableClient": "client.disable",
        f"{_OIDC}BeginOidcLogin": "session.oidc-begin",
        f"{_OIDC}FinishOidcLogin": "session.oidc",
        f"{_OIDC}LinkIdentity": "identity.link",
        f"{_OIDC}UnlinkIdentity": "identity.unlink",
        f"{_OIDC}ListIdentities": "identity.list",
        f"{_ACCESS}RequestAccess": "access.request",
        f"{_ACCESS}ListAccess": "access.list",
        f"{_ACCESS}ApproveAccess": "access.approve",
        f"{_ACCESS}DenyAccess": "access.deny",
        f"{_ACCESS}RevokeAccess": "access.revoke",
        f"{_ACCESS}BreakGlass": "session.break-glass",
        "/sealward.api.gateway.v1.AccessReviewService/ReviewAccess": "access.review",
        f"{_POLICY}GetPolicy": "policy.read",
        f"{_POLICY}ListPolicies": "policy.read",
        f"{_POLICY}ProposePolicy": "policy.propose",
        f"{_POLICY}ApprovePolicy": "policy.change",
        f"{_POLICY}RejectPolicy": "policy.reject",
        f"{_POLICY}ExplainPolicy": "policy.explain",
        f"{_POLICY}TestPolicy": "policy.test",
        f"{_POLICY}DiffPolicy": "policy.diff",
        f"{_POLICY}SetShadowPolicy": "policy.shadow",
        f"{_POLICY}GetShadowPolicy": "policy.shadow",
        f"{_MEMBERSHIP}SetMembership": "membership.set",
        f"{_MEMBERSHIP}ListMemberships": "membership.list",
        "/sealward.api.gateway.v1.QuotaService/ListQuotas": "quota.list",
        f"{_DESTRUCTION}RequestDestruction": "keys.destroy-request",
        f"{_DESTRUCTION}ApproveDestruction": "keys.destroy-approve",
        f"{_DESTRUCTION}CancelDestruction": "keys.destroy-cancel",
        f"{_DESTRUCTION}ListDestructions": "keys.destroy-list",
        f"{_DEID}DrawCodes": "deid.draw",
        f"{_DEID}Reidentify": "deid.reidentify",
        f"{_DEID}ListProjects": "deid.list",
        f"{_DEID}DropProject": "deid.drop",
        f"{_LOG}GetConsistency": "log.consistency",
        f"{_LOG}GetReceipt": "log.receipt",
        "/sealward.api.common.v1.HolderService/Rewrap": "keys.rewrap-pass",
    }
)
UNDO = "undo"
"""Where a handler leaves what to do when its success could not be recorded."""


class ControlRecorder:
    """The chassis' `around` hook of the gateway. Thread-safe."""

    def __init__(
        self,
        audit: Exchange,
        writer: EventWriter,
        denials: DenialLimit,
        log: structlog.typing.FilteringBoundLogger,
        *,
        audit_ready: Callable[[], bool],
        append_seconds: float,
    ) -> None:
        self._audit = audit
        self._writer = writer
        self._denials = denials
        self._log = log
        self._audit_ready = audit_ready
        self._append_seconds = append_seconds

    def __call__(self, call: ControlCall, proceed: Callable[[], Message]) -> Message:
        """Run a control call and record it; raise AUDIT_UNAVAILABLE when that is not possible."""
        if call.method in UNRECORDED:
            return proceed()
        if not self._audit_ready():
            # Not even begun: what cannot be recorded must not happen.
            raise audit_lost()
        event = _event(EVENT_TYPES.get(call.method, "access.denied"), call.method)
        try:
            response = proceed()
        except SealwardError as error:
            self._refused(call, event, error)
            raise
        except Exception:
            self._refused(call, event, SealwardError(Reason.INTERNAL, "internal error"))
            raise
        if call.method in QUIET:
            return response
        try:
            self._append(call, event, None)
        except SealwardError:
            undo = cast("Callable[[], None] | None", call.attributes.get(UNDO))
            if undo is not None:
                undo()
            raise
        return response

    def cut(self, call: ControlCall, error: SealwardError) -> None:
        """Record that an open stream was ended, and why; a log that is away has no record of it."""
        event = _event("session.cut", call.method)
        with contextlib.suppress(SealwardError):
            self._append(replace(call, trailers=[]), event, error)

    def summarise(self) -> None:
        """Record how many refusals were only counted since the last time."""
        for uri, count in self._denials.take().items():
            identity = parse_identity(uri)
            event = _event("session.denied-summary", "")
            event.end = event.start
            event.parts = [
                attribute(names.ACTOR_ID, identity.name),
                attribute(names.ACTOR_KIND, identity.kind),
                attribute(names.COUNT, count),
            ]
            event.error = SealwardError(Reason.RATE_LIMITED, "")
            try:
                self._send(event)
            except SealwardError:
                self._denials.give_back(uri, count)

    def _refused(self, call: ControlCall, event: Event, error: SealwardError) -> None:
        known = cast("Caller | None", call.attributes.get(CALLER))
        identity = call.peer.identity
        if known is None and not self._denials.allow(identity.uri, time.monotonic()):
            return
        self._append(call, event, error)

    def _append(self, call: ControlCall, event: Event, error: SealwardError | None) -> None:
        caller = cast("Caller | None", call.attributes.get(CALLER))
        session = caller.session if caller else None
        parts = [events.actor(call.peer.identity, call.peer.spki_sha256, session)]
        if caller is not None:
            event.parent = caller.headers.parent
            event.patient = caller.headers.patient
            if caller.headers.seq is not None:
                parts.append(events.caller_seq(caller.headers.seq))
            decided = caller.decision
            if decided is not None:
                parts.append(events.decision(decided.rule, decided.digest, caller.headers.purpose))
        parts += [
            attribute(key, cast("AttributeValue", value))
            for key, value in call.attributes.items()
            if key in names.ALLOWED
        ]
        event.parts = parts
        event.error = error
        event.end = time.time_ns()
        self._send(event, call)

    def _send(self, event: Event, call: ControlCall | None = None) -> None:
        deadline = time.monotonic() + self._append_seconds
        try:
            reply, checkpoint = self._audit.call("", self._writer.entry(event), deadline)
        except SealwardError:
            raise audit_lost() from None
        trailers = receipt_trailers(event, reply, checkpoint)
        if trailers is None:
            self._log.error("audit.no-receipt", method=event.method, code=reply.code)
            raise audit_lost()
        if call is not None:
            call.trailers.extend(trailers)


def _event(event_type: str, method: str) -> Event:
    return Event(new_event_id(), secrets.token_bytes(32), event_type, method, time.time_ns())
