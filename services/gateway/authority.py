"""Who makes a control call, and whether they may: by session and policy, as for predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from sealward.kit.chain import ControlCall, call_of
from sealward.kit.identity import Identity
from services.gateway.admission import Sessions
from services.gateway.memberships import Parameters
from services.gateway.memberships import none as no_parameters
from services.gateway.metadata import NONE, Headers, bearer_token, read_headers
from services.gateway.policy import Decision, Facts, Policy
from services.gateway.policy.refusal import refusal
from services.gateway.session import Session, token_hash
from services.gateway.steady import steady_time

ADMINISTRATOR_RULE = "local-administrator"
# Where a handler leaves its Caller for the recorder.
CALLER = "caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a control call. The local administrator has no session."""

    identity: Identity
    session: Session | None
    decision: Decision | None = None
    headers: Headers = NONE

    @property
    def local(self) -> bool:
        """True for the administrator of this machine."""
        return self.identity.kind == "admin"


class Authority:
    """Admits control calls. Thread-safe."""

    def __init__(
        self,
        sessions: Sessions,
        policy: Policy,
        fresh_seconds: int = 0,
        parameters: Callable[[str, tuple[str, ...]], Parameters] = no_parameters,
    ) -> None:
        """`fresh_seconds` is for how long a proof of the second factor counts.

        `parameters` returns those of a user's memberships (Memberships.of).
        """
        self._parameters = parameters
        self._sessions = sessions
        self._policy = policy
        self._fresh = fresh_seconds

    def admit(self, context: Any, model: str = "") -> Caller:
        """Return the caller of a handler; raise what stands against the call.

        The local administrator is admitted by the identity × RPC table, which the chassis has
        checked; everybody else needs a session and a rule.
        """
        call = call_of(context)
        if call.peer.identity.kind == "admin":
            decision = Decision(True, ADMINISTRATOR_RULE, self._policy.digest)
            return note(call, Caller(call.peer.identity, None, decision))
        name = bearer_name(context)
        spki = call.peer.spki_sha256
        session = self._sessions.find(name, spki) or self._sessions.load(name, spki)
        caller = note(call, Caller(call.peer.identity, session))
        headers = read_headers(call.metadata)
        rpc = call.method.rsplit("/", 1)[1]
        facts = self._facts(call.peer.identity, session, headers.patient)
        decision = self._policy.decide(session.roles, rpc, model, headers.purpose, facts)
        caller = note(call, Caller(call.peer.identity, session, decision, headers))
        if not decision.permitted:
            raise refusal(
                self._policy, session.roles, rpc, model, headers.purpose, facts,
                "no rule permits this role this call",
            )  # fmt: skip
        return caller

    def still(self, call: ControlCall) -> None:
        """Raise what stands by now against a call that was admitted; no use of the session."""
        caller: Caller = call.attributes[CALLER]
        session = self._sessions.peek(
            token_hash(bearer_token(call.metadata)), call.peer.spki_sha256
        )
        rpc = call.method.rsplit("/", 1)[1]
        headers = caller.headers
        facts = self._facts(caller.identity, session, headers.patient)
        if not self._policy.decide(session.roles, rpc, "", headers.purpose, facts).permitted:
            raise refusal(
                self._policy, session.roles, rpc, "", headers.purpose, facts,
                "no rule permits this role this call",
            )  # fmt: skip

    def may(self, caller: Caller, rpc: str) -> bool:
        """Whether a caller who was admitted may also call another RPC."""
        if caller.local:
            return True
        session = caller.session
        if session is None:
            return False
        facts = self._facts(caller.identity, session)
        return self._policy.decide(session.roles, rpc, "", "", facts).permitted

    def _facts(self, identity: Identity, session: Session, patient: str = "") -> Facts:
        return Facts(
            session.user,
            identity.kind,
            break_glass=bool(session.break_glass),
            patient=bool(patient),
            second_factor=steady_time() < session.second_factor + self._fresh,
            multi_factor=session.second_factor > 0,
            parameters=self._parameters(session.user_id, session.roles),
        )


def bearer_name(context: Any) -> str:
    """Return the store's name of the token that a handler's call carries; raise SESSION_MISSING."""
    return token_hash(bearer_token(call_of(context).metadata))


def note(call: ControlCall, caller: Caller) -> Caller:
    """Leave the caller for the recorder."""
    call.attributes[CALLER] = caller
    return caller


def deadline_of(context: grpc.ServicerContext) -> float:
    """The deadline of a handler's call, on the monotonic clock."""
    return call_of(context).deadline
