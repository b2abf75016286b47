"""FactorService: protos to domain and back."""

from __future__ import annotations

from typing import Any

from sealward.api.gateway.v1 import factor_pb2 as pb
from sealward.api.gateway.v1 import factor_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority, Caller, bearer_name, note
from services.gateway.factors.factors import Factors
from services.gateway.factors.keys import SecurityKeys
from services.gateway.session import Session
from services.gateway.sessions import SessionStore
from services.gateway.steady import steady_time
from services.gateway.users import UserDirectory


class FactorServicer(pb_grpc.FactorServiceServicer):
    """See the protos. `fresh_seconds` is for how long a proof counts as fresh."""

    def __init__(
        self,
        authority: Authority,
        factors: Factors,
        users: UserDirectory,
        store: SessionStore,
        keys: SecurityKeys,
        *,
        fresh_seconds: int,
    ) -> None:
        self._authority = authority
        self._factors = factors
        self._users = users
        self._store = store
        self._keys = keys
        self._fresh = fresh_seconds

    def ListFactors(self, _request: pb.ListFactorsRequest, context: Any) -> pb.ListFactorsResponse:
        """Say which factors there are."""
        session = _own(self._authority.admit(context))
        return pb.ListFactorsResponse(
            totp=self._factors.has_totp(session.user_id),
            recovery_codes=self._factors.recovery_left(session.user_id),
            proven=session.second_factor,
            keys=[
                pb.WebauthnKey(
                    credential_id=key.credential_id,
                    name=key.name,
                    created=key.created,
                    last_used=key.last_used,
                    suspended=key.suspended,
                )
                for key in self._keys.of(session.user_id)
            ],
        )

    def BeginTotp(self, _request: pb.BeginTotpRequest, context: Any) -> pb.BeginTotpResponse:
        """Draw a secret."""
        session = self._enrolling(context)
        secret, uri = self._factors.begin(session.user_id, session.user)
        return pb.BeginTotpResponse(secret=secret, uri=uri)

    def ConfirmTotp(self, request: pb.ConfirmTotpRequest, context: Any) -> pb.ConfirmTotpResponse:
        """Let the secret count; the session has a fresh second factor from now on."""
        session = self._enrolling(context)
        codes = self._factors.confirm(session.user_id, session.user, request.code)
        self._store.prove(bearer_name(context), session, int(steady_time()))
        return pb.ConfirmTotpResponse(recovery_codes=codes)

    def BeginWebauthn(
        self, _request: pb.BeginWebauthnRequest, context: Any
    ) -> pb.BeginWebauthnResponse:
        """Give options for a new key."""
        session = self._enrolling(context)
        return pb.BeginWebauthnResponse(
            options_json=self._keys.begin(session.user_id, session.user)
        )

    def ConfirmWebauthn(
        self, request: pb.ConfirmWebauthnRequest, context: Any
    ) -> pb.ConfirmWebauthnResponse:
        """Let the key count; the session has a fresh second factor from now on."""
        session = self._enrolling(context)
        done = self._keys.confirm(session.user_id, request.response_json, request.name)
        self._store.prove(bearer_name(context), session, int(steady_time()))
        return pb.ConfirmWebauthnResponse(
            credential_id=done.key.credential_id, recovery_codes=done.recovery_codes
        )

    def BeginAssertion(
        self, _request: pb.BeginAssertionRequest, context: Any
    ) -> pb.BeginAssertionResponse:
        """Give options for a proof: to whoever has the user's certificate, before a session."""
        call = call_of(context)
        note(call, Caller(call.peer.identity, None))
        user = self._users.get(call.peer.identity.name)
        user_id = "" if user is None or user.disabled else user.user_id
        return pb.BeginAssertionResponse(options_json=self._keys.begin_proof(user_id))

    def RemoveWebauthn(
        self, request: pb.RemoveWebauthnRequest, context: Any
    ) -> pb.RemoveWebauthnResponse:
        """Forget one of one's own keys."""
        self._keys.remove(self._freshly(context).user_id, request.credential_id)
        return pb.RemoveWebauthnResponse()

    def NewRecoveryCodes(
        self, _request: pb.NewRecoveryCodesRequest, context: Any
    ) -> pb.NewRecoveryCodesResponse:
        """Replace the recovery codes."""
        session = self._freshly(context)
        return pb.NewRecoveryCodesResponse(
            recovery_codes=self._factors.new_recovery_codes(session.user_id)
        )

    def RemoveFactors(
        self, _request: pb.RemoveFactorsRequest, context: Any
    ) -> pb.RemoveFactorsResponse:
        """Forget one's own factors."""
        self._factors.remove(self._freshly(context).user_id)
        return pb.RemoveFactorsResponse()

    def ResetFactors(
        self, request: pb.ResetFactorsRequest, context: Any
    ) -> pb.ResetFactorsResponse:
        """Forget somebody's factors; whoever is logged in as them is out."""
        self._authority.admit(context)
        user = self._users.get(request.user)
        if user is None:
            raise SealwardError(Reason.NOT_FOUND, "there is no such user", field="user")
        attributes = call_of(context).attributes
        attributes[names.TARGET] = user.name
        self._factors.remove(user.user_id)
        attributes[names.COUNT] = revoked = self._store.end_all(user.user_id)
        return pb.ResetFactorsResponse(revoked=revoked)

    def StepUp(self, request: pb.StepUpRequest, context: Any) -> pb.StepUpResponse:
        """Prove the second factor anew."""
        session = _own(self._authority.admit(context))
        if request.assertion:
            self._keys.prove(session.user_id, session.user, request.assertion)
        else:
            self._factors.prove(session.user_id, session.user, request.code)
        now = int(steady_time())
        self._store.prove(bearer_name(context), session, now)
        return pb.StepUpResponse(fresh_until=now + self._fresh)

    def _enrolling(self, context: Any) -> Session:
        """Return the session of who adds a factor: beside one that is there, with a fresh proof."""
        session = _own(self._authority.admit(context))
        stale = steady_time() >= session.second_factor + self._fresh
        if stale and self._factors.enrolled(session.user_id):
            raise SealwardError(Reason.STEP_UP_REQUIRED, "prove the second factor first: step up")
        return session

    def _freshly(self, context: Any) -> Session:
        session = _own(self._authority.admit(context))
        if steady_time() >= session.second_factor + self._fresh:
            raise SealwardError(Reason.STEP_UP_REQUIRED, "prove the second factor first: step up")
        return session


def _own(caller: Caller) -> Session:
    if caller.session is None:
        raise SealwardError(Reason.SESSION_MISSING, "log in as a user: factors are a person's")
    return caller.session
