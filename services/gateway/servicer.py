"""SessionService, UserService and LogService: protos to domain and back, no logic of their own."""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.api.gateway.v1 import gateway_pb2 as pb
from sealward.api.gateway.v1 import gateway_pb2_grpc as pb_grpc
from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.identity import Peer, spiffe_id
from sealward.kit.reasons import Reason
from sealward.kit.unreadable import X509_ERRORS
from sealward.tlog.leaf import SALT_SIZE
from sealward.tlog.receipt import format_receipt
from services.gateway import events
from services.gateway.authority import Authority, Caller, deadline_of, note
from services.gateway.control import UNDO
from services.gateway.factors.factors import Factors
from services.gateway.factors.keys import SecurityKeys
from services.gateway.lockouts import SOURCE, USER
from services.gateway.offboarding import Offboarding
from services.gateway.remote import ask
from services.gateway.session import Session
from services.gateway.sessions import SessionStore
from services.gateway.steady import steady_time
from services.gateway.users import User, UserDirectory
from services.gateway.workloads.clients import ClientDirectory

_SESSION_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST_PASSWORD = 1024
_MOST_SIZES = 1024
_SIGN_OF_LIFE_SECONDS = 5.0


class SessionServicer(pb_grpc.SessionServiceServicer):
    """Login, logout, and the sessions of others."""

    def __init__(
        self,
        authority: Authority,
        users: UserDirectory,
        store: SessionStore,
        factors: Factors,
        keys: SecurityKeys,
    ) -> None:
        self._authority = authority
        self._users = users
        self._store = store
        self._factors = factors
        self._keys = keys

    def Login(self, request: pb.LoginRequest, context: Any) -> pb.LoginResponse:
        """Log a user in. The certificate has to be the user's own."""
        call = call_of(context)
        identity = call.peer.identity
        source = source_of(call.peer)
        if identity.kind != "user" or identity.name != request.user:
            self._users.throttle.failed("", source)
            raise SealwardError(
                Reason.IDENTITY_FORBIDDEN, "the certificate is not of this user", field="user"
            )
        for field in ("password", "new_password"):
            if len(getattr(request, field)) > _LONGEST_PASSWORD:
                raise SealwardError(
                    Reason.FIELD_INVALID, f"at most {_LONGEST_PASSWORD} characters", field=field
                )
        proven = 0

        def second(user: User) -> None:
            nonlocal proven
            if not self._factors.enrolled(user.user_id):
                return
            if request.assertion:
                self._keys.prove(user.user_id, user.name, request.assertion)
            elif request.code:
                self._factors.prove(user.user_id, user.name, request.code)
            else:
                raise SealwardError(
                    Reason.SECOND_FACTOR_REQUIRED, "the user has a second factor", field="code"
                )
            proven = int(steady_time())

        user = self._users.authenticate(
            request.user, request.password, request.new_password, second, source
        )
        generation = user.generation
        if request.new_password:
            # Whoever knew the old password may have a session.
            self._store.end_all(user.user_id)
            generation += 1
        token, session = self._store.create(
            user.user_id, user.name, user.roles, call.peer.spki_sha256, generation,
            second_factor=proven,
        )  # fmt: skip
        note(call, Caller(identity, session))
        call.attributes[UNDO] = lambda: self._store.end(session)
        return pb.LoginResponse(
            token=token,
            expires=session.expires,
            idle_seconds=self._store.idle_seconds,
            session_id=session.session_id,
        )

    def Logout(self, _request: pb.LogoutRequest, context: Any) -> pb.LogoutResponse:
        """End the caller's own session."""
        session = self._authority.admit(context).session
        if session is None:
            raise SealwardError(Reason.SESSION_MISSING, "there is no session to end")
        self._store.end(session)
        return pb.LogoutResponse()

    def ListSessions(
        self, request: pb.ListSessionsRequest, context: Any
    ) -> pb.ListSessionsResponse:
        """List the live sessions of one user or of all."""
        self._authority.admit(context)
        chosen = self._users.all()
        if request.user:
            chosen = [user for user in chosen if user.name == request.user]
            if not chosen:
                raise SealwardError(Reason.NOT_FOUND, "there is no such user", field="user")
            call_of(context).attributes[names.TARGET] = request.user
        found = self._store.of_users(user.user_id for user in chosen)
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListSessionsResponse(sessions=[_session(session) for session in found])

    def RevokeSessions(
        self, request: pb.RevokeSessionsRequest, context: Any
    ) -> pb.RevokeSessionsResponse:
        """End one session, or all of a user."""
        self._authority.admit(context)
        attributes = call_of(context).attributes
        if [bool(request.session_id), bool(request.user), request.all].count(True) != 1:
            raise SealwardError(
                Reason.FIELD_INVALID, "give a session_id, a user or all", field="session_id"
            )
        if request.all:
            revoked = self._store.end_everybody()
        elif request.session_id:
            if not _SESSION_ID.fullmatch(request.session_id):
                raise SealwardError(
                    Reason.FIELD_INVALID, "a session id has 32 digits", field="session_id"
                )
            attributes[names.TARGET] = request.session_id
            revoked = int(self._store.end_by_id(request.session_id))
        else:
            user = self._users.existing(request.user)
            attributes[names.TARGET] = user.name
            revoked = self._store.end_all(user.user_id)
        attributes[names.COUNT] = revoked
        return pb.RevokeSessionsResponse(revoked=revoked)

    def WatchSession(
        self, _request: pb.WatchSessionRequest, context: Any
    ) -> Iterator[pb.WatchSessionResponse]:
        """Stay open while the session lives; streams.py ends it."""
        session = self._authority.admit(context).session
        if session is None:
            raise SealwardError(Reason.SESSION_MISSING, "there is no session to watch")
        call = call_of(context)
        woken = threading.Event()
        call.wake = woken.set
        alive = context.add_callback(woken.set)
        while alive and call.cut is None:
            yield pb.WatchSessionResponse(session_id=session.session_id, expires=session.expires)
            woken.wait(_SIGN_OF_LIFE_SECONDS)
            alive = context.is_active()


class UserServicer(pb_grpc.UserServiceServicer):
    """Users and their certificates. `keys` gives the channel to the keys service."""

    def __init__(
        self,
        authority: Authority,
        users: UserDirectory,
        store: SessionStore,
        offboarding: Offboarding,
        keys: Callable[[], grpc.Channel],
        trust_domain: str,
        clients: ClientDirectory,
    ) -> None:
        self._authority = authority
        self._users = users
        self._store = store
        self._offboarding = offboarding
        self._keys = keys
        self._trust_domain = trust_domain
        self._clients = clients

    def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        """Add a user."""
        self._authority.admit(context)
        if self._clients.get(request.user) is not None:
            # The record names both by their names.
            raise SealwardError(
                Reason.ALREADY_EXISTS, "there is a client of this name", field="user"
            )
        user = self._users.create(
            request.user, request.roles, request.password, one_time=request.one_time
        )
        call_of(context).attributes[names.TARGET] = user.name
        return pb.CreateUserResponse(user_id=user.user_id)

    def DisableUser(self, request: pb.DisableUserRequest, context: Any) -> pb.DisableUserResponse:
        """Stop a user from logging in, and end what they have."""
        caller = self._authority.admit(context)
        attributes = call_of(context).attributes
        attributes[names.TARGET] = self._users.existing(request.user).name
        ended = self._offboarding.disable(
            request.user, f"{caller.identity.kind}/{caller.identity.name}"
        )
        attributes[names.COUNT] = ended.sessions
        return pb.DisableUserResponse(
            revoked=ended.sessions,
            grants=ended.grants,
            certificates=ended.certificates or 0,
            certificates_pending=ended.certificates is None,
        )

    def SetRoles(self, request: pb.SetRolesRequest, context: Any) -> pb.SetRolesResponse:
        """Give a user other roles, and end the sessions that have the old ones."""
        caller = self._authority.admit(context)
        before = self._users.existing(request.user)
        call = call_of(context)
        call.attributes[names.TARGET] = before.name
        if caller.session is not None and caller.session.user_id == before.user_id:
            raise SealwardError(Reason.POLICY_DENIED, "nobody changes their own roles")
        user = self._users.set_roles(request.user, request.roles, request.version)
        # Not recorded, not changed: but the sessions stay ended.
        call.attributes[UNDO] = lambda: self._users.set_roles(user.name, before.roles, user.version)
        call.attributes[names.CHANGE_BEFORE] = ",".join(before.roles)
        call.attributes[names.CHANGE_AFTER] = ",".join(user.roles)
        call.attributes[names.COUNT] = revoked = self._store.end_all(user.user_id)
        return pb.SetRolesResponse(version=user.version, revoked=revoked)

    def ResetPassword(
        self, request: pb.ResetPasswordRequest, context: Any
    ) -> pb.ResetPasswordResponse:
        """Give a user another password, and end the sessions of the old one."""
        self._authority.admit(context)
        attributes = call_of(context).attributes
        attributes[names.TARGET] = self._users.existing(request.user).name
        user = self._users.reset_password(request.user, request.password, one_time=request.one_time)
        attributes[names.COUNT] = revoked = self._store.end_all(user.user_id)
        return pb.ResetPasswordResponse(revoked=revoked)

    def UnlockUser(self, request: pb.UnlockUserRequest, context: Any) -> pb.UnlockUserResponse:
        """Take a lock away."""
        self._authority.admit(context)
        if bool(request.user) == bool(request.source):
            raise SealwardError(
                Reason.FIELD_INVALID, "give either a user or a source", field="user"
            )
        attributes = call_of(context).attributes
        if request.user:
            user = self._users.existing(request.user).name
            attributes[names.TARGET] = user
            done = self._users.throttle.unlock(user=user)
        else:
            source = _address(request.source)
            attributes[names.TARGET] = source
            done = self._users.throttle.unlock(source=source)
        return pb.UnlockUserResponse(unlocked=done)

    def ListUsers(self, _request: pb.ListUsersRequest, context: Any) -> pb.ListUsersResponse:
        """List all users."""
        self._authority.admit(context)
        found = self._users.all()
        locks = self._users.throttle.locks(USER)
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListUsersResponse(
            locked_sources=[
                pb.LockedSource(source=source, locked_until=until)
                for source, until in self._users.throttle.locks(SOURCE).items()
            ],
            users=[
                pb.User(
                    user=user.name,
                    user_id=user.user_id,
                    roles=user.roles,
                    disabled=user.disabled,
                    created=user.created,
                    version=user.version,
                    locked_until=locks.get(user.name, 0),
                )
                for user in found
            ],
        )

    def IssueUserCertificate(
        self, request: pb.IssueUserCertificateRequest, context: Any
    ) -> pb.IssueUserCertificateResponse:
        """Have somebody's certificate signed: by an administrator, or the caller's own anew."""
        call = call_of(context)
        identity = call.peer.identity
        own = identity.kind in ("user", "workload") and request.user in ("", identity.name)
        if own:
            # A certificate renews itself for the key pair that it is for, without a session.
            note(call, Caller(identity, None))
            _check_same_key(request.csr, call.peer.spki_sha256)
        else:
            self._authority.admit(context)
        name = identity.name if own else request.user
        # No user and client have the same name.
        user, client = self._users.get(name), self._clients.get(name)
        kind, found = ("user", user) if client is None else ("workload", client)
        if found is None or found.disabled or (own and kind != identity.kind):
            raise SealwardError(Reason.NOT_FOUND, "there is no such active user", field="user")
        call.attributes[names.TARGET] = found.name
        answer = ask(
            KeysServiceStub(self._keys()).IssueCertificate,
            keys_pb2.IssueCertificateRequest(
                csr=request.csr, spiffe_id=spiffe_id(self._trust_domain, kind, found.name)
            ),
            deadline=deadline_of(context),
            unavailable=Reason.KEYS_UNAVAILABLE,
        )
        now = self._users.get(name) if client is None else self._clients.get(name)
        if now is None or now.disabled:
            # In the meantime: this certificate is not handed out; a user's goes with the others.
            if client is None:
                self._users.disable(name)
            raise SealwardError(Reason.NOT_FOUND, "there is no such active user", field="user")
        return pb.IssueUserCertificateResponse(
            certificate_pem=answer.certificate_pem,
            bundle_pem=answer.bundle_pem,
            not_after=answer.not_after,
        )


class LogServicer(pb_grpc.LogServiceServicer):
    """What clients need of the log. `audit` gives the channel to the audit service."""

    def __init__(self, authority: Authority, audit: Callable[[], grpc.Channel]) -> None:
        self._authority = authority
        self._audit = audit

    def GetConsistency(
        self, request: pb.GetConsistencyRequest, context: Any
    ) -> pb.GetConsistencyResponse:
        """Pass consistency proofs on from audit."""
        try:
            self._authority.admit(context)
        except SealwardError as error:
            if error.reason is not Reason.SEAL_BROKEN:
                raise
            # A stored session that somebody spoilt. Here lost data would mean that the log has
            # lost some: clients take it for a fork.
            raise SealwardError(
                Reason.SESSION_INVALID, "the stored session cannot be read: log in again"
            ) from None
        if not 2 <= len(request.sizes) <= _MOST_SIZES:
            raise SealwardError(
                Reason.FIELD_INVALID, f"give 2 to {_MOST_SIZES} sizes", field="sizes"
            )
        answer = ask(
            AuditServiceStub(self._audit()).GetConsistency,
            audit_pb2.GetConsistencyRequest(sizes=request.sizes, origin=request.origin),
            deadline=deadline_of(context),
            unavailable=Reason.AUDIT_UNAVAILABLE,
        )
        return pb.GetConsistencyResponse(proofs=answer.proofs)

    def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.GetReceiptResponse:
        """Return the receipt of an event of the caller's own."""
        caller = self._authority.admit(context)
        if len(request.event_id) != 16:
            raise SealwardError(Reason.FIELD_INVALID, "an event id has 16 bytes", field="event_id")
        call_of(context).attributes[names.TARGET] = events.event_name(request.event_id)
        found = ask(
            AuditServiceStub(self._audit()).GetEvent,
            audit_pb2.GetEventRequest(event_id=request.event_id),
            deadline=deadline_of(context),
            unavailable=Reason.AUDIT_UNAVAILABLE,
        )
        if not caller.local and found.summary.actor != caller.identity.name:
            # The same answer as for an event that does not exist.
            raise SealwardError(Reason.NOT_FOUND, "there is no such event", field="event_id")
        receipt, checkpoint = found.receipt, found.checkpoint
        if request.cosigned:
            proven = ask(
                AuditServiceStub(self._audit()).GetReceipt,
                audit_pb2.GetReceiptRequest(event_id=request.event_id, cosigned=True),
                deadline=deadline_of(context),
                unavailable=Reason.AUDIT_UNAVAILABLE,
            )
            receipt, checkpoint = proven.receipt, proven.checkpoint
        text = format_receipt(
            receipt.log_index, receipt.path, receipt.leaf, bytes(SALT_SIZE), checkpoint
        )
        return pb.GetReceiptResponse(receipt=text)


def source_of(peer: Peer) -> str:
    """Return the address that a call comes from, without its port; empty when it has none."""
    address = unquote(peer.address)
    kind, _, rest = address.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise SealwardError(
            Reason.FIELD_INVALID, "a source is an IP address", field="source"
        ) from None


def _check_same_key(csr: bytes, spki_sha256: bytes) -> None:
    try:
        key = x509.load_der_x509_csr(csr).public_key()
        spki = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except X509_ERRORS:
        spki = b""
    if events.digest(spki) != spki_sha256:
        raise SealwardError(
            Reason.CERTIFICATE_REQUEST_INVALID,
            "a renewal is for the key pair of the present certificate",
            field="csr",
        )


def _session(session: Session) -> pb.Session:
    return pb.Session(
        session_id=session.session_id,
        user=session.user,
        roles=session.roles,
        created=session.created,
        expires=session.expires,
    )
