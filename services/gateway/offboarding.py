"""What ends with a user: sessions and open streams, grants, certificates.

The user directory is written first, so that whatever is away then, the user is out: nobody logs in
with their password, and no session of theirs is live. Certificates are revoked by the keys service;
while it is away that stays to be done, and is done when it answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import structlog

from sealward.api.keys.v1 import trust_pb2
from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceStub
from sealward.kit.errors import SealwardError
from sealward.kit.identity import spiffe_id
from sealward.kit.reasons import Reason
from services.gateway.grants import Grants
from services.gateway.remote import ask
from services.gateway.sessions import SessionStore
from services.gateway.users import User, UserDirectory

_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What ended with a user. `certificates` is None while the keys service is away."""

    user: User
    sessions: int
    grants: int
    certificates: int | None


class Offboarding:
    """Disables users. Thread-safe. `keys` gives the channel to the keys service."""

    def __init__(
        self,
        users: UserDirectory,
        store: SessionStore,
        grants: Grants,
        keys: Callable[[], grpc.Channel],
        trust_domain: str,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._users = users
        self._store = store
        self._grants = grants
        self._keys = keys
        self._trust_domain = trust_domain
        self._log = log

    def disable(self, name: str, by: str) -> Ended:
        """End everything; `by` is who does it, `kind/name`. Repeating it is fine.

        Raises NOT_FOUND; SESSION_STORE_UNAVAILABLE when the other gateways could not be told yet:
        everything else is done then.
        """
        user = self._users.disable(name)
        grants = self._grants.end_of(user.user_id, by)
        certificates = self._revoke(name)
        return Ended(user, self._store.end_all(user.user_id), grants, certificates)

    def catch_up(self) -> None:
        """Revoke the certificates that the keys service was away for; to be called now and then."""
        for name in self._users.due():
            if self._revoke(name) is not None:
                self._log.info("users.certificates-revoked", name=name)

    def _revoke(self, name: str) -> int | None:
        try:
            answer = ask(
                TrustServiceStub(self._keys()).Revoke,
                trust_pb2.RevokeRequest(
                    spiffe_id=spiffe_id(self._trust_domain, "user", name),
                    reason=trust_pb2.REVOCATION_REASON_PRIVILEGE_WITHDRAWN,
                ),
                deadline=time.monotonic() + _SECONDS,
                unavailable=Reason.KEYS_UNAVAILABLE,
            )
            count = len(answer.revoked)
        except SealwardError as error:
            # Without a living certificate there is nothing to revoke.
            if error.reason is not Reason.NOT_FOUND:
                return None
            count = 0
        self._users.settle(name)
        return count
