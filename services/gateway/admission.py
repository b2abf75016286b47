"""Whether a prediction may begin: identity, session, request, purpose, policy, deadline.

One pass a call, in this order, and nothing in it blocks: where the session is not in the cache, or
a quota needs a new lease, `begin` says so and the caller comes back with `load`, which may block.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sealward.kit.access import allowed
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.seam import Call
from sealward.kit.wire import WireError, oip_head
from services.gateway.emergency import check_patient
from services.gateway.events import Event, Run
from services.gateway.memberships import Parameters
from services.gateway.memberships import none as no_parameters
from services.gateway.metadata import NONE, Headers, bearer_token, read_headers
from services.gateway.policy import Decision, Facts, Policy
from services.gateway.policy.limits import Limit
from services.gateway.policy.refusal import refusal
from services.gateway.purposes import purpose_of
from services.gateway.quotas import Ticket
from services.gateway.session import Session, token_hash
from services.gateway.steady import steady_time

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODEL_VERSION = re.compile(r"[A-Za-z0-9._-]{0,64}")


class Sessions(Protocol):
    """What admission needs of the session store."""

    def find(self, name: str, spki: bytes) -> Session | None:
        """See SessionStore.find."""

    def load(self, name: str, spki: bytes) -> Session:
        """See SessionStore.load."""

    def peek(self, name: str, spki: bytes) -> Session:
        """See SessionStore.peek."""


class Granted(Protocol):
    """What admission needs of the grants."""

    def covers(self, user_id: str, model: str, purpose: str) -> bool:
        """See Grants.covers."""


class Limits(Protocol):
    """What admission needs of the catalog."""

    def time_limit(self, model: str) -> float:
        """See Catalog.time_limit."""


class Counted(Protocol):
    """What admission needs of the quotas."""

    def take(self, limits: Sequence[Limit], user_id: str, *, wait: bool) -> Ticket | None:
        """See Quotas.take."""


@dataclass(slots=True, eq=False)
class Flight:
    """One prediction on its way through the gateway.

    `deadline` is on the monotonic clock; `body` is the response message. `withheld` are the outputs
    that were left out of it; `taken` is what the call has taken of its quotas.
    """

    call: Call
    event: Event
    token_name: str = ""
    session: Session | None = None
    headers: Headers = NONE
    decision: Decision | None = None
    purpose: str = ""
    model: str = ""
    version: str = ""
    deadline: float = float("inf")
    body: bytes = b""
    error: SealwardError | None = None
    run: Run | None = None
    withheld: tuple[str, ...] = ()
    taken: Ticket | None = None


class Admission:
    """Decides on predictions. Thread-safe; raises SealwardError for a call that may not begin."""

    def __init__(
        self,
        sessions: Sessions,
        policy: Policy,
        grants: Granted,
        limits: Limits,
        max_message_bytes: int,
        fresh_seconds: int = 0,
        parameters: Callable[[str, tuple[str, ...]], Parameters] = no_parameters,
        quotas: Counted | None = None,
    ) -> None:
        """`fresh_seconds` is for how long a proof of the second factor counts.

        `parameters` returns those of a user's memberships (Memberships.of). Without `quotas` a call
        that counts for one is refused.
        """
        self._parameters = parameters
        self._quotas = quotas
        self._fresh = fresh_seconds
        self._sessions = sessions
        self._policy = policy
        self._grants = grants
        self._limits = limits
        self._max_bytes = max_message_bytes

    def begin(self, flight: Flight) -> bool:
        """Check identity and session, then `proceed`; False when the session has to be loaded."""
        call = flight.call
        if call.problem is not None:
            raise call.problem
        if not allowed(call.peer.identity, call.method):
            raise SealwardError(
                Reason.IDENTITY_FORBIDDEN, f"{call.peer.identity.role} may not call this method"
            )
        flight.token_name = token_hash(bearer_token(call.metadata))
        session = self._sessions.find(flight.token_name, call.peer.spki_sha256)
        if session is None:
            return False
        flight.session = session
        return self.proceed(flight)

    def load(self, flight: Flight) -> None:
        """Read the session from the store, then `proceed`. Blocks for a round trip or two."""
        if flight.session is None:
            flight.session = self._sessions.load(flight.token_name, flight.call.peer.spki_sha256)
        self.proceed(flight, wait=True)

    def proceed(self, flight: Flight, *, wait: bool = False) -> bool:
        """Check what comes after the session.

        Return False when a quota has to be leased first; with `wait` it is leased.
        """
        call, session = flight.call, flight.session
        assert session is not None  # noqa: S101 - both callers have just set it
        flight.headers = headers = read_headers(call.metadata)
        if len(call.body) > self._max_bytes:
            raise SealwardError(
                Reason.MESSAGE_TOO_LARGE, f"a request may have {self._max_bytes} bytes"
            )
        try:
            model, version, _ = oip_head(call.body)
        except WireError:
            raise SealwardError(
                Reason.REQUEST_MALFORMED, "the request is not a ModelInferRequest"
            ) from None
        if not _MODEL_NAME.fullmatch(model):
            raise _field("model_name")
        if not _MODEL_VERSION.fullmatch(version):
            raise _field("model_version")
        flight.model, flight.version = model, version
        flight.purpose = purpose_of(headers.purpose, session.roles)
        check_patient(session, headers.patient)
        facts = Facts(
            session.user, call.peer.identity.kind,
            granted=self._grants.covers(session.user_id, model, flight.purpose),
            break_glass=bool(session.break_glass), patient=bool(headers.patient),
            second_factor=steady_time() < session.second_factor + self._fresh,
            multi_factor=session.second_factor > 0,
            parameters=self._parameters(session.user_id, session.roles),
        )  # fmt: skip
        flight.decision = self._policy.decide(
            session.roles, "ModelInfer", model, flight.purpose, facts
        )
        if not flight.decision.permitted:
            raise refusal(
                self._policy, session.roles, "ModelInfer", model, flight.purpose, facts,
                "no rule permits this role this model for this purpose",
            )  # fmt: skip
        now = time.monotonic()
        flight.deadline = min(call.deadline, now + self._limits.time_limit(model))
        if flight.deadline <= now:
            raise SealwardError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the answer")
        if flight.decision.quotas:
            return self._count(flight, session.user_id, wait=wait)
        return True

    def _count(self, flight: Flight, user_id: str, *, wait: bool) -> bool:
        if self._quotas is None or flight.decision is None:
            raise SealwardError(Reason.QUOTA_EXCEEDED, "nobody counts quotas", retry_after=60.0)
        flight.taken = self._quotas.take(flight.decision.quotas, user_id, wait=wait)
        return flight.taken is not None


def _field(name: str) -> SealwardError:
    return SealwardError(
        Reason.FIELD_INVALID, f"{name} is missing or has a form that no model has", field=name
    )
