"""Security keys and passkeys as second factors: enrolment, proof, what a copied key looks like."""

from __future__ import annotations

import base64
import re
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.challenges import Challenges
from services.gateway.factors import recovery
from services.gateway.factors.store import FactorStore, SecurityKey
from services.gateway.factors.webauthn import RelyingParty, WebauthnError, named, text
from services.gateway.throttle import LoginThrottle

MOST_KEYS = 10
"""Keys of a user."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_ENROL, _PROVE = "webauthn-enrol", "webauthn-prove"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A key that counts from now on, and recovery codes where the user had none."""

    key: SecurityKey
    recovery_codes: list[str]


class SecurityKeys:
    """Thread-safe. `relying` is None where no domain is set: then every call is NOT_SUPPORTED."""

    def __init__(
        self,
        store: FactorStore,
        relying: RelyingParty | None,
        challenges: Challenges,
        throttle: LoginThrottle,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._relying = relying
        self._challenges = challenges
        self._throttle = throttle
        self._clock = clock

    def of(self, user_id: str) -> list[SecurityKey]:
        """Return a user's keys, oldest first."""
        return self._store.keys(user_id)

    def begin(self, user_id: str, user: str) -> str:
        """Return options for a new key; raise ALREADY_EXISTS where there are too many."""
        relying, known = self._set(), self.of(user_id)
        if len(known) >= MOST_KEYS:
            raise SealwardError(Reason.ALREADY_EXISTS, f"a user has {MOST_KEYS} keys at most")
        challenge = self._challenge(_ENROL, user_id)
        ids = [key.credential_id for key in known]
        return relying.registration_options(user_id, user, challenge, self._challenges.seconds, ids)

    def confirm(self, user_id: str, response: str, name: str) -> Enrolled:
        """Let a key count; raise CHALLENGE_UNKNOWN, SECOND_FACTOR_WRONG, ALREADY_EXISTS."""
        relying = self._set()
        if not _NAME.fullmatch(name):
            raise SealwardError(
                Reason.FIELD_INVALID, "1 to 64 letters, digits, blanks, dots, dashes", field="name"
            )
        try:
            made = relying.registered(response, self._answered(_ENROL, user_id, response))
        except WebauthnError:
            raise _wrong("response") from None
        codes = [] if self._store.recovery_left(user_id) else recovery.new_codes()
        key = SecurityKey(
            made.credential_id, name, made.public_key, made.sign_count, int(self._clock()), 0,
            suspended=False,
        )  # fmt: skip
        try:
            self._store.add_key(user_id, key, [recovery.mark(code) for code in codes])
        except sqlite3.IntegrityError:
            raise SealwardError(
                Reason.ALREADY_EXISTS, "this key is somebody's already", field="response"
            ) from None
        return Enrolled(key, codes)

    def begin_proof(self, user_id: str) -> str:
        """Return options for a proof by one of a user's keys; raise NOT_FOUND where none counts."""
        relying = self._set()
        ids = [key.credential_id for key in self.of(user_id) if not key.suspended]
        if not ids:
            raise SealwardError(Reason.NOT_FOUND, "there is no key that counts")
        challenge = self._challenge(_PROVE, user_id)
        return relying.assertion_options(challenge, self._challenges.seconds, ids)

    def prove(self, user_id: str, user: str, response: str) -> None:
        """Check a proof; raise CHALLENGE_UNKNOWN, SECOND_FACTOR_WRONG, FACTOR_SUSPENDED.

        A counter that did not go on means that there are two of the key: it counts no more.
        """
        relying = self._set()
        self._throttle.check(user)
        try:
            challenge = self._answered(_PROVE, user_id, response)
            credential_id, _ = named(response)
            key = next((k for k in self.of(user_id) if k.credential_id == credential_id), None)
            if key is None:
                raise WebauthnError
            count = relying.asserted(response, challenge, key.public_key)
        except WebauthnError:
            self._throttle.failed(user)
            raise _wrong("assertion") from None
        if key.suspended or not self._store.use_key(
            user_id, credential_id, count, int(self._clock())
        ):
            self._store.suspend_key(user_id, credential_id)
            raise SealwardError(
                Reason.FACTOR_SUSPENDED,
                "the key's counter went back: there may be a copy. Use a recovery code, remove it",
                field="assertion",
            )
        self._throttle.succeeded(user)

    def remove(self, user_id: str, credential_id: str) -> None:
        """Forget a key; raise NOT_FOUND. With the last factor the recovery codes go too."""
        if not self._store.remove_key(user_id, credential_id):
            raise SealwardError(Reason.NOT_FOUND, "there is no such key", field="credential_id")

    def _challenge(self, kind: str, user_id: str) -> bytes:
        challenge = secrets.token_bytes(32)
        self._challenges.give(kind, user_id, {}, text(challenge))
        return challenge

    def _answered(self, kind: str, user_id: str, response: str) -> bytes:
        """Use up the challenge that a response is to; raise CHALLENGE_UNKNOWN, WebauthnError."""
        challenge = named(response)[1]
        self._challenges.take(kind, user_id, challenge)
        return base64.urlsafe_b64decode(challenge + "=" * (-len(challenge) % 4))

    def _set(self) -> RelyingParty:
        if self._relying is None:
            raise SealwardError(
                Reason.NOT_SUPPORTED, "no domain is set (SEALWARD_GATEWAY_WEBAUTHN_RP_ID)"
            )
        return self._relying


def _wrong(field: str) -> SealwardError:
    return SealwardError(
        Reason.SECOND_FACTOR_WRONG, "the answer of the key is not right", field=field
    )
