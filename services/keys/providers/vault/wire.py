"""One exchange with Vault: over several addresses, within a time, and nothing else.

hvac's adapter sends; nothing here is retried that Vault has answered, and no redirect is followed:
it would carry the token to wherever it points. The environment's proxies, CA bundles and tokens are
not looked at.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
from hvac.adapters import RawAdapter
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as ConnectError
from requests.exceptions import ConnectTimeout, RequestException, SSLError, Timeout
from urllib3.exceptions import NewConnectionError

from sealward.seal.secret import Secret
from services.keys.providers.vault.config import Target
from services.keys.providers.vault.troubles import Trouble, UnavailableError

_CONNECT_SECONDS = 1.0
_HEALTH = "sys/health"
_STATES = {200, 429, 473}
"""What sys/health answers for a node that can serve or forward: active, standby, performance."""
_ELSEWHERE = {307, 308, 412, 472}
"""What a standby answers that does not forward, and a replica that is behind."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What Vault answered. `body` is empty where there was none."""

    status: int
    body: Mapping[str, Any] = field(repr=False)

    @property
    def errors(self) -> tuple[str, ...]:
        """Vault's own words about what went wrong."""
        found = self.body.get("errors")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def data(self) -> Mapping[str, Any]:
        """The part of the answer that is about the call."""
        found = self.body.get("data")
        return found if isinstance(found, dict) else {}


class Wire:
    """Sends to the address that answered last, and to the others when it does not. Thread-safe."""

    def __init__(self, target: Target, clock: Callable[[], float] = time.monotonic) -> None:
        self._target = target
        self._clock = clock
        self._lock = threading.Lock()
        self._first = 0
        self._adapters = self._connect()

    @property
    def address(self) -> str:
        """The address that is tried first."""
        return self._target.addresses[self._first]

    def reconnect(self) -> None:
        """Open new connections from now on: with the client certificate that is there now."""
        with self._lock:
            old, self._adapters = self._adapters, self._connect()
        for adapter in old:
            adapter.close()

    def close(self) -> None:
        """Close the connections."""
        for adapter in self._adapters:
            adapter.close()

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: Secret | None = None,
        repeatable: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Exchange one call; raise UnavailableError. 4xx but for throttling is an answer.

        A call that is not `repeatable` goes to another address only if it did not go out at all.
        """
        first, adapters = self._first, self._adapters
        sent = {**(headers or {}), **self._standing(path, token)}
        deadline = self._clock() + self._target.timeout
        longest = self._target.timeout / min(2, len(adapters))
        places = [(first + turn) % len(adapters) for turn in range(len(adapters))]
        worst: Trouble | None = None
        again = repeatable
        while places and (left := min(longest, deadline - self._clock())) > 0:
            at = places.pop(0)
            try:
                answer = _exchange(adapters[at], method, path, body, sent, left)
            except _NoAnswerError as error:
                worst = _worse(worst, error.trouble)
                if error.trouble is Trouble.THROTTLED or (error.went_out and not repeatable):
                    break
                if again and error.went_out and error.trouble is Trouble.UNREACHABLE:
                    # A connection that was kept may have been closed by the other side meanwhile.
                    places.insert(0, at)
                    again = False
                continue
            self._first = at
            return answer
        # Whoever comes next begins elsewhere.
        self._first = (first + 1) % len(adapters)
        raise UnavailableError(worst or Trouble.SLOW)

    def health(self) -> None:
        """Return when some address can serve; raise UnavailableError saying why none can."""
        answer = self.send("get", _HEALTH)
        if answer.status not in _STATES:
            raise UnavailableError(Trouble.FAILING)

    def _standing(self, path: str, token: Secret | None) -> dict[str, str]:
        headers = {"X-Vault-Token": token.reveal().decode("ascii")} if token else {}
        # Health is the server's, not a namespace's.
        if self._target.namespace and path != _HEALTH:
            headers["X-Vault-Namespace"] = self._target.namespace
        return headers

    def _connect(self) -> tuple[RawAdapter, ...]:
        return tuple(self._adapter(address) for address in self._target.addresses)

    def _adapter(self, address: str) -> RawAdapter:
        target = self._target
        session = requests.Session()
        session.trust_env = False
        # hvac takes these from the session and not from its own arguments once there is a session.
        session.verify = str(target.ca_file) if target.ca_file else True
        if target.certificate:
            session.cert = (str(target.certificate.cert_file), str(target.certificate.key_file))
        pool = HTTPAdapter(pool_connections=1, pool_maxsize=target.calls, max_retries=0)
        session.mount("https://", pool)
        session.mount("http://", pool)
        return RawAdapter(
            base_uri=address, session=session, allow_redirects=False, strict_http=True
        )


class _NoAnswerError(Exception):
    def __init__(self, trouble: Trouble, *, went_out: bool) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble
        self.went_out = went_out


def _exchange(
    adapter: RawAdapter,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    headers: Mapping[str, str],
    seconds: float,
) -> Answer:
    try:
        response = adapter.request(
            method,
            f"/v1/{path}",
            headers=dict(headers),
            raise_exception=False,
            json=body,
            timeout=(min(_CONNECT_SECONDS, seconds), seconds),
        )
        status, content = response.status_code, response.content
    except ConnectTimeout:
        raise _NoAnswerError(Trouble.UNREACHABLE, went_out=False) from None
    except SSLError:
        raise _NoAnswerError(Trouble.UNTRUSTED, went_out=False) from None
    except Timeout:
        raise _NoAnswerError(Trouble.SLOW, went_out=True) from None
    except ConnectError as error:
        # No connection was had, or one was cut off while we waited.
        reason = getattr(error.args[0], "reason", None) if error.args else None
        went_out = not isinstance(reason, NewConnectionError)
        raise _NoAnswerError(Trouble.UNREACHABLE, went_out=went_out) from None
    except (RequestException, OSError):
        raise _NoAnswerError(Trouble.FAILING, went_out=True) from None
    answer = Answer(status, _parse(content))
    trouble = _trouble_of(answer, path)
    if trouble is not None:
        raise _NoAnswerError(trouble, went_out=status >= 500)
    return answer


def _parse(content: bytes) -> dict[str, Any]:
    """Read a body; what is not Vault's JSON (a proxy's page) becomes `{"foreign": True}`."""
    try:
        parsed = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, dict) else {"foreign": True}


def _trouble_of(answer: Answer, path: str) -> Trouble | None:
    status, body = answer.status, answer.body
    said = " ".join(answer.errors)
    if "foreign" in body:
        return Trouble.FAILING
    if status >= 500 and (
        "sealed" in said or body.get("sealed") is True or body.get("initialized") is False
    ):
        return Trouble.SEALED
    if status in _ELSEWHERE or "active cluster node not found" in said:
        return Trouble.STANDBY
    if status < 300 or (path == _HEALTH and status in _STATES):
        return None
    if status == 429:
        return Trouble.THROTTLED
    return Trouble.FAILING if status < 400 or status >= 500 else None


_GRAVITY = (
    Trouble.UNREACHABLE, Trouble.FAILING, Trouble.THROTTLED, Trouble.STANDBY, Trouble.SLOW,
    Trouble.UNTRUSTED, Trouble.SEALED,
)  # fmt: skip


def _worse(one: Trouble | None, other: Trouble) -> Trouble:
    """Of two troubles at two addresses the one that says more."""
    return other if one is None or _GRAVITY.index(other) > _GRAVITY.index(one) else one
