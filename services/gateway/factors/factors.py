"""Second factors: enrolment, proof, recovery, removal."""

from __future__ import annotations

from collections.abc import Callable

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.factors import recovery, totp
from services.gateway.factors.store import FactorStore
from services.gateway.throttle import LoginThrottle

ISSUER = "Sealward"


class Factors:
    """The second factors of this deployment. Thread-safe. `clock` gives seconds since the epoch.

    Wrong codes make their user wait, as wrong passwords do: six digits are soon guessed otherwise.
    """

    def __init__(
        self, store: FactorStore, throttle: LoginThrottle, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._throttle = throttle
        self._clock = clock

    def enrolled(self, user_id: str) -> bool:
        """Whether a login of this user needs a second factor."""
        return self._store.has_totp(user_id) or self._store.has_keys(user_id)

    def has_totp(self, user_id: str) -> bool:
        """Whether one-time passwords are among a user's factors."""
        return self._store.has_totp(user_id)

    def recovery_left(self, user_id: str) -> int:
        """Return how many recovery codes are left."""
        return self._store.recovery_left(user_id)

    def begin(self, user_id: str, user: str) -> tuple[str, str]:
        """Draw a secret; return it and its URI. Raise ALREADY_EXISTS where one counts."""
        if self.has_totp(user_id):
            raise SealwardError(
                Reason.ALREADY_EXISTS, "there is a second factor: remove it first", field="user"
            )
        secret = totp.new_secret()
        self._store.put_totp(user_id, secret)
        return secret, totp.uri(secret, user, ISSUER)

    def confirm(self, user_id: str, user: str, code: str) -> list[str]:
        """Let the secret count when the code is of it; return the recovery codes."""
        self._throttle.check(user)
        found = self._store.totp(user_id)
        if found is None or found[1]:
            raise SealwardError(Reason.NOT_FOUND, "there is no secret to confirm", field="code")
        step = totp.matching_step(found[0], code, self._clock(), found[2])
        codes = recovery.new_codes()
        marks = [recovery.mark(made) for made in codes]
        if step is None or not self._store.confirm(user_id, step, marks):
            raise self._wrong(user)
        self._throttle.succeeded(user)
        return codes

    def prove(self, user_id: str, user: str, code: str) -> None:
        """Check and spend a code; raise SECOND_FACTOR_WRONG or RATE_LIMITED."""
        self._throttle.check(user)
        if not self._spend(user_id, code):
            raise self._wrong(user)
        self._throttle.succeeded(user)

    def new_recovery_codes(self, user_id: str) -> list[str]:
        """Draw recovery codes; those of before are worth nothing any more."""
        codes = recovery.new_codes()
        self._store.put_recovery(user_id, [recovery.mark(code) for code in codes])
        return codes

    def remove(self, user_id: str) -> None:
        """Forget every factor of a user."""
        self._store.remove(user_id)

    def _spend(self, user_id: str, code: str) -> bool:
        if recovery.is_code(code):
            return self._store.use_recovery(user_id, recovery.mark(code))
        found = self._store.totp(user_id)
        if found is None or not found[1]:
            return False
        step = totp.matching_step(found[0], code, self._clock(), found[2])
        return step is not None and self._store.use_step(user_id, step)

    def _wrong(self, user: str) -> SealwardError:
        self._throttle.failed(user)
        return SealwardError(
            Reason.SECOND_FACTOR_WRONG, "the code is wrong, over, or was used", field="code"
        )
