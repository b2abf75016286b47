"""The service's session with Vault: logged in, renewed, watched, and closed to calls in trouble.

A call in trouble (no answer, sealed, login refused) closes the session: from then on every call is
refused at once, so that a Vault that hangs costs no thread, and a thread of its own asks Vault
until it is well again. Nobody has to restart anything. Calls are bounded in number as well.

After a 403 the token is looked up: where it has died, the service logs in once anew and repeats the
call; where it lives, the policy forbids the call, and that is the answer. 4xx are never retried.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from services.keys.providers.base import Condition, State
from services.keys.providers.vault.api import Api
from services.keys.providers.vault.config import VaultConfig
from services.keys.providers.vault.gate import Gate
from services.keys.providers.vault.login import (
    NoCredentialsError,
    Token,
    fingerprint,
    lease_seconds,
    log_in,
)
from services.keys.providers.vault.troubles import TEXTS, RefusedError, Trouble, UnavailableError
from services.keys.providers.vault.wire import Answer, Wire

_PROBE_SECONDS = 2.0
_RECOVERY_FIRST = 0.5
_RECOVERY_MOST = 5.0
_STEADY_SECONDS = 30.0
"""Trouble that comes back sooner than this is asked about more and more seldom."""
_LOGIN_FIRST = 5.0
# Vault locks a role out that fails to log in again and again.
_LOGIN_MOST = 300.0
_RETRY_AFTER = 1.0
_FORBIDDEN = 403
_OPERATIONS = frozenset({"datakey", "decrypt", "rewrap", "rotate", "keys", "sign", "issuers"})


@dataclass(frozen=True, slots=True)
class _Refused:
    """A login that Vault refused: with which files, and until when it is not tried again."""

    files: bytes
    until: float
    pause: float


class _LoginRefusedError(Exception):
    pass


class VaultSession:
    """Calls of Vault under the service's own token. Thread-safe.

    `hard_seconds` is the hard limit of leases: so long after the last call that Vault answered,
    something that was leased may still serve. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        config: VaultConfig,
        hard_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.wire = Wire(config.target, clock)
        self.api = Api(lambda method, path, body, _headers: self.call(method, path, body))
        """Vault's API by `call`."""
        self.once = Api(
            lambda method, path, body, _headers: self.call(method, path, body, repeatable=False)
        )
        """The same, for what must not reach Vault twice."""
        self.observe: Callable[[str, str, float], None] = lambda *_: None
        """Told of each call: what for, `ok`, `refused` or `unavailable`, and its seconds."""
        self.logins = 0
        self.renewals = 0
        self.failed_renewals = 0
        self._hard_seconds = hard_seconds
        self._on_change: Callable[[Condition], None] = lambda _condition: None
        self._clock = clock
        self._gate = Gate(config.target.calls, config.target.timeout)
        self._login_lock = threading.Lock()
        self._telling = threading.Lock()
        self._token: Token | None = None
        self._renew_at = 0.0
        self._lock = threading.Condition()
        self._trouble: Trouble | None = Trouble.LOGIN_REFUSED
        self._since = time.time()
        self._answered = clock()
        self._stopped = False
        self._refused_login: _Refused | None = None
        self._thread = threading.Thread(target=self._run, name="vault-session", daemon=True)

    # --- for the provider --------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        repeatable: bool = True,
    ) -> Answer:
        """Call Vault and return its answer.

        Raises SealwardError KEYSTORE_UNAVAILABLE, at once while there is trouble, and RefusedError
        for what Vault refuses (4xx other than 403).
        """
        began, outcome = self._clock(), "unavailable"
        try:
            answer = self._call(method, path, body, repeatable)
            outcome = "ok" if answer.status < 400 else "refused"
        finally:
            self.observe(_operation(path), outcome, self._clock() - began)
        self._answered = self._clock()
        if answer.status >= 400:
            raise RefusedError(answer.status, answer.errors, answer.data)
        return answer

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, repeatable: bool
    ) -> Answer:
        with self._gate.entered(self._closed):
            token = self._token
            if token is None:
                raise _unavailable(Trouble.LOGIN_REFUSED)
            try:
                answer = self._send(method, path, body, token, repeatable)
                if answer.status == _FORBIDDEN:
                    token = self._token_after_refusal(token)
                    answer = self._send(method, path, body, token, repeatable)
                    if answer.status == _FORBIDDEN:
                        raise UnavailableError(Trouble.FORBIDDEN)
            except UnavailableError as error:
                if error.trouble not in (Trouble.FORBIDDEN, Trouble.THROTTLED):
                    self._set(error.trouble)
                raise _unavailable(error.trouble) from None
        return answer

    def condition(self) -> Condition:
        """Say how the session is now."""
        with self._lock:
            if self._trouble is None:
                return Condition("ready", since=self._since)
            served = self._clock() - self._answered < self._hard_seconds
            state: State = "degraded" if served else "sealed"
            return Condition(state, self._trouble.value, self._since)

    @property
    def token_seconds(self) -> float:
        """The life that the token had when it was last renewed; 0 when there is none."""
        token = self._token
        return token.seconds if token else 0.0

    # --- life --------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Wait for a Vault that is starting; raise UnavailableError when it does not come."""
        deadline = self._clock() + seconds
        while True:
            try:
                self.wire.health()
            except UnavailableError:
                if self._clock() >= deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def open(self) -> None:
        """Log in; raise StartupError where Vault refuses, UnavailableError when it is away."""
        try:
            self._log_in()
        except RefusedError:
            raise StartupError(
                f"{TEXTS[Trouble.LOGIN_REFUSED]}: role id, secret id or certificate are not"
                " accepted (`sealward vault secret-id` makes a new secret id)"
            ) from None
        except NoCredentialsError as error:
            raise StartupError(f"no login to Vault: {error}") from None
        self._set(None)

    def start(self, on_change: Callable[[Condition], None]) -> None:
        """Renew, watch and recover from now on.

        `on_change` is told of each change, from the thread that noticed it; it must not call back.
        """
        self._on_change = on_change
        self._thread.start()

    def close(self) -> None:
        """Stop watching, and give the token back."""
        with self._lock:
            self._stopped = True
            token, self._token = self._token, None
            trouble = self._trouble
            self._trouble = self._trouble or Trouble.LOGIN_REFUSED
            self._lock.notify_all()
        if token is not None and trouble is None:
            self._give_back(token)
        self.wire.close()

    # --- the token ---------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        token: Token,
        repeatable: bool,
    ) -> Answer:
        return self.wire.send(method, path, body, token=token.value, repeatable=repeatable)

    def _token_after_refusal(self, used: Token) -> Token:
        """Return a token to repeat a call with that got a 403; raise UnavailableError."""
        with self._login_lock:
            current = self._token
            if current is not None and current is not used:
                return current
            if self._alive(used):
                raise UnavailableError(Trouble.FORBIDDEN)
            try:
                return self._log_in_locked()
            except (RefusedError, NoCredentialsError):
                raise UnavailableError(Trouble.LOGIN_REFUSED) from None

    def _alive(self, token: Token) -> bool:
        answer: Answer = self._under(token).token.lookup_self()
        return answer.status < 400

    def _under(self, token: Token) -> Api:
        """Vault's API under a token, whatever the session's condition is."""
        return Api(
            lambda method, path, body, _headers: self.wire.send(
                method, path, body, token=token.value
            )
        )

    def _log_in(self) -> Token:
        with self._login_lock:
            return self._log_in_locked()

    def _log_in_locked(self) -> Token:
        """Log in; raise UnavailableError, RefusedError, NoCredentialsError."""
        asked = self._clock()
        files = fingerprint(self.config)
        try:
            token = log_in(self.wire, self.config)
        except RefusedError:
            before = self._refused_login.pause if self._refused_login else _LOGIN_FIRST / 2
            pause = min(_LOGIN_MOST, 2 * before)
            self._refused_login = _Refused(files, asked + pause, pause)
            raise
        self._refused_login = None
        self._take(token, asked)
        self.logins += 1
        return token

    def _take(self, token: Token, asked: float) -> None:
        with self._lock:
            if self._stopped:
                raise UnavailableError(Trouble.LOGIN_REFUSED)
            self._token = token
            # Half of its life, a little earlier or later, so that many do not renew at once.
            life = token.seconds / 2 * random.uniform(0.9, 1.0)  # noqa: S311 - no secret
            self._renew_at = asked + life if token.seconds else float("inf")
            self._lock.notify_all()

    def _renew(self) -> None:
        """Renew the token, or log in anew where it cannot be renewed (for long) any more."""
        with self._login_lock:
            token = self._token
            if token is not None and self._renewed(token):
                return
            self._log_in_locked()
        if token is not None:
            self._give_back(token)

    def _renewed(self, token: Token) -> bool:
        if not token.renewable:
            return False
        asked = self._clock()
        answer: Answer = self._under(token).token.renew_self()
        auth = answer.body.get("auth")
        if answer.status >= 400 or not isinstance(auth, dict):
            return False
        # Near the end of its longest life Vault grants less and less.
        try:
            if lease_seconds(auth) < 0.9 * token.seconds:
                return False
        except (ValueError, TypeError):
            return False
        self._take(token, asked)
        self.renewals += 1
        return True

    def _give_back(self, token: Token) -> None:
        try:
            self._under(token).token.revoke_self()
        except UnavailableError:
            # It ends by itself.
            return

    # --- watching ----------------------------------------------------------------------------

    def _run(self) -> None:
        gap, recovered = _RECOVERY_FIRST, float("-inf")
        next_probe, next_try = self._clock(), float("-inf")
        while True:
            trouble = self._await_turn(next_probe, next_try)
            if self._stopped:
                return
            try:
                if trouble is None:
                    self._watch()
                    next_probe = self._clock() + _PROBE_SECONDS
                else:
                    self._recover()
                    now = self._clock()
                    # What comes back at once is asked about more and more seldom.
                    again = now - recovered < _STEADY_SECONDS
                    gap = min(_RECOVERY_MOST, 2 * gap) if again else _RECOVERY_FIRST
                    recovered, next_try = now, now + gap
            except UnavailableError as error:
                self._set(error.trouble)
                gap = min(_RECOVERY_MOST, 2 * gap)
                next_try = self._clock() + gap

    def _await_turn(self, next_probe: float, next_try: float) -> Trouble | None:
        """Wait until there is something to do; return the trouble at that moment."""
        with self._lock:
            while not self._stopped:
                due = next_try if self._trouble else min(next_probe, self._renew_at)
                left = due - self._clock()
                if left <= 0:
                    break
                self._lock.wait(left)
            return self._trouble

    def _watch(self) -> None:
        if self._clock() < self._renew_at:
            self.wire.health()
            return
        try:
            self._when_allowed(self._renew)
        except _LoginRefusedError:
            # What we have is good for some time yet.
            self.failed_renewals += 1
            token = self._token
            if token is None or not self._alive(token):
                raise UnavailableError(Trouble.LOGIN_REFUSED) from None
            self._renew_at = self._clock() + _LOGIN_FIRST

    def _recover(self) -> None:
        """Clear the trouble when Vault serves and takes our token or a new login."""
        self.wire.health()
        token = self._token
        if token is None or not self._alive(token):
            try:
                self._when_allowed(self._log_in)
            except _LoginRefusedError:
                raise UnavailableError(Trouble.LOGIN_REFUSED) from None
        self._set(None)

    def _when_allowed(self, step: Callable[[], object]) -> None:
        """Log in, but not again and again with what was refused; raise _LoginRefusedError."""
        refused = self._refused_login
        if (
            refused is not None
            and self._clock() < refused.until
            and refused.files == fingerprint(self.config)
        ):
            raise _LoginRefusedError
        try:
            step()
        except (RefusedError, NoCredentialsError):
            raise _LoginRefusedError from None

    def _set(self, trouble: Trouble | None) -> None:
        with self._lock:
            if self._stopped or trouble is self._trouble:
                return
            if (trouble is None) is not (self._trouble is None):
                self._since = time.time()
            if trouble is None:
                self._answered = self._clock()
            self._trouble = trouble
            self._lock.notify_all()
        with self._telling:
            # Read here: two changes at once are told in any order, and the last word is the truth.
            self._on_change(self.condition())

    def _closed(self) -> SealwardError | None:
        """Return the error of a call while there is trouble; None while there is none."""
        trouble = self._trouble
        return None if trouble is None else _unavailable(trouble)

    def __repr__(self) -> str:
        return f"VaultSession(state={self.condition().state!r})"


def _operation(path: str) -> str:
    """What a call is for, of a closed set."""
    return next((part for part in path.split("/") if part in _OPERATIONS), "other")


def _unavailable(trouble: Trouble) -> SealwardError:
    return SealwardError(Reason.KEYSTORE_UNAVAILABLE, TEXTS[trouble], retry_after=_RETRY_AFTER)
