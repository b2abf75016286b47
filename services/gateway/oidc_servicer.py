"""OidcService: protos to domain and back."""

from __future__ import annotations

from typing import Any

from sealward.api.gateway.v1 import oidc_pb2 as pb
from sealward.api.gateway.v1 import oidc_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority, Caller, note
from services.gateway.control import UNDO
from services.gateway.factors.factors import Factors
from services.gateway.factors.keys import SecurityKeys
from services.gateway.oidc.identities import Identities, Identity
from services.gateway.oidc.logins import OidcLogins
from services.gateway.sessions import SessionStore
from services.gateway.steady import steady_time
from services.gateway.users import UserDirectory

_LONGEST_SUBJECT = 255


class OidcServicer(pb_grpc.OidcServiceServicer):
    """See the protos. `logins` is None where no provider is set."""

    def __init__(
        self,
        authority: Authority,
        logins: OidcLogins | None,
        identities: Identities,
        users: UserDirectory,
        store: SessionStore,
        factors: Factors,
        keys: SecurityKeys,
    ) -> None:
        self._authority = authority
        self._logins = logins
        self._identities = identities
        self._users = users
        self._store = store
        self._factors = factors
        self._keys = keys

    def BeginOidcLogin(
        self, request: pb.BeginOidcLoginRequest, context: Any
    ) -> pb.BeginOidcLoginResponse:
        """Begin."""
        logins = self._set()
        peer = call_of(context).peer
        login_id, url = logins.begin(
            peer.identity.name, peer.spki_sha256, request.redirect_uri, request.code_challenge,
            request.state,
        )  # fmt: skip
        user = self._users.get(peer.identity.name)
        return pb.BeginOidcLoginResponse(
            login_id=login_id,
            authorization_url=url,
            issuer=logins.provider.issuer,
            expires_in=int(logins.challenges.seconds),
            second_factor=user is not None and self._factors.enrolled(user.user_id),
        )

    def FinishOidcLogin(
        self, request: pb.FinishOidcLoginRequest, context: Any
    ) -> pb.FinishOidcLoginResponse:
        """End it, with a session. What is missing here is told before the code is spent."""
        logins = self._set()
        call = call_of(context)
        identity, spki = call.peer.identity, call.peer.spki_sha256
        before = self._users.get(identity.name)
        needed = before is not None and self._factors.enrolled(before.user_id)
        if needed and not (request.code or request.assertion):
            raise SealwardError(
                Reason.SECOND_FACTOR_REQUIRED, "the user has a second factor here", field="code"
            )
        done = logins.finish(
            identity.name, spki, request.login_id, request.authorization_code,
            request.code_verifier,
        )  # fmt: skip
        user, now = done.user, int(steady_time())
        if needed and request.assertion:
            self._keys.prove(user.user_id, user.name, request.assertion)
        elif needed:
            self._factors.prove(user.user_id, user.name, request.code)
        if user.roles != done.roles:
            # Whoever had other roles until now shall not keep them in an open session.
            call.attributes[names.CHANGE_BEFORE] = ",".join(user.roles)
            call.attributes[names.CHANGE_AFTER] = ",".join(done.roles)
            self._users.set_roles(user.name, done.roles, user.version)
            self._store.end_all(user.user_id)
            user = self._users.existing(user.name)
        token, session = self._store.create(
            user.user_id, user.name, done.roles, spki, user.generation,
            second_factor=now if needed or done.second_factor else 0,
        )  # fmt: skip
        note(call, Caller(identity, session))
        call.attributes[UNDO] = lambda: self._store.end(session)
        return pb.FinishOidcLoginResponse(
            token=token,
            expires=session.expires,
            idle_seconds=self._store.idle_seconds,
            session_id=session.session_id,
            roles=session.roles,
        )

    def LinkIdentity(
        self, request: pb.LinkIdentityRequest, context: Any
    ) -> pb.LinkIdentityResponse:
        """Say which person at the provider a user is."""
        self._authority.admit(context)
        if not 0 < len(request.subject) <= _LONGEST_SUBJECT:
            raise SealwardError(
                Reason.FIELD_INVALID, f"1 to {_LONGEST_SUBJECT} characters", field="subject"
            )
        user = self._users.get(request.user)
        if user is None or user.disabled:
            raise SealwardError(Reason.NOT_FOUND, "there is no such active user", field="user")
        call_of(context).attributes[names.TARGET] = user.name
        made = self._identities.link(self._set().provider.issuer, request.subject, user.name)
        call_of(context).attributes[UNDO] = lambda: self._identities.unlink(user.name)
        return pb.LinkIdentityResponse(identity=_identity(made))

    def UnlinkIdentity(
        self, request: pb.UnlinkIdentityRequest, context: Any
    ) -> pb.UnlinkIdentityResponse:
        """Take it back, and end what is open."""
        self._authority.admit(context)
        user = self._users.get(request.user)
        if user is None or not self._identities.unlink(user.name):
            raise SealwardError(Reason.NOT_FOUND, "nobody at a provider is this user", field="user")
        attributes = call_of(context).attributes
        attributes[names.TARGET] = user.name
        attributes[names.COUNT] = revoked = self._store.end_all(user.user_id)
        return pb.UnlinkIdentityResponse(revoked=revoked)

    def ListIdentities(
        self, _request: pb.ListIdentitiesRequest, context: Any
    ) -> pb.ListIdentitiesResponse:
        """List who is who."""
        self._authority.admit(context)
        found = self._identities.all()
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListIdentitiesResponse(identities=map(_identity, found))

    def _set(self) -> OidcLogins:
        if self._logins is None:
            raise SealwardError(
                Reason.NOT_SUPPORTED, "no identity provider is set (SEALWARD_GATEWAY_OIDC_ISSUER)"
            )
        return self._logins


def _identity(found: Identity) -> pb.LinkedIdentity:
    return pb.LinkedIdentity(
        user=found.user, issuer=found.issuer, subject=found.subject, since=found.since
    )
