"""One exchange with Vault: over several addresses, within a time, and nothing else.

urllib3's connections send; nothing here is retried that Vault has answered, and no redirect is
followed: it would carry the token to wherever it points. The environment's proxies, CA bundles and
tokens are not looked at.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

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
        self._peers = self._connect()

    @property
    def address(self) -> str:
        """The address that is tried first."""
        return self._target.addresses[self._first]

    def reconnect(self) -> None:
        """Open new connections from now on: with the client certificate that is there now."""
        with self._lock:
            old, self._peers = self._peers, self._connect()
        for peer in old:
            peer.close()

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers:
            peer.close()

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
        first, peers = self._first, self._peers
        sent = {**(headers or {}), **self._standing(path, token)}
        deadline = self._clock() + self._target.timeout
        longest = self._target.timeout / min(2, len(peers))
        places = [(first + turn) % len(peers) for turn in range(len(peers))]
        worst: Trouble | None = None
        again = repeatable
        while places and (left := min(longest, deadline - self._clock())) > 0:
            at = places.pop(0)
            try:
                answer = _exchange(peers[at], method, path, body, sent, left)
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
        self._first = (first + 1) % len(peers)
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

    def _connect(self) -> tuple[_Peer, ...]:
        return tuple(_Peer(address, self._target) for address in self._target.addresses)


class _Peer:
    """One address and its kept connections, which are made when they are needed."""

    def __init__(self, address: str, target: Target) -> None:
        self._address = address
        self._target = target
        self._pools: urllib3.PoolManager | None = None

    @property
    def pool(self) -> HTTPConnectionPool:
        """The connections; raise OSError for a certificate that cannot be read.

        New ones after `close`, which calls under way do not notice.
        """
        pools = self._pools
        if pools is None:
            context = _tls(self._target) if self._address.startswith("https:") else None
            pools = self._pools = urllib3.PoolManager(
                num_pools=1, maxsize=self._target.calls, ssl_context=context
            )
        return pools.connection_from_url(self._address)

    def close(self) -> None:
        """Close those that are idle, and the others when they are."""
        if self._pools is not None:
            self._pools.clear()


def _tls(target: Target) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if target.ca_file:
        context.load_verify_locations(target.ca_file)
    else:
        # The machine's own, where OpenSSL has them: SSL_CERT_FILE names others.
        paths = ssl.get_default_verify_paths()
        if Path(paths.openssl_cafile).is_file():
            context.load_verify_locations(paths.openssl_cafile)
        if Path(paths.openssl_capath).is_dir():
            context.load_verify_locations(capath=paths.openssl_capath)
    if target.certificate:
        context.load_cert_chain(target.certificate.cert_file, target.certificate.key_file)
    return context


class _NoAnswerError(Exception):
    def __init__(self, trouble: Trouble, *, went_out: bool) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble
        self.went_out = went_out


def _exchange(
    peer: _Peer,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    headers: Mapping[str, str],
    seconds: float,
) -> Answer:
    # Vault lists by a method of its own, which a proxy may not know; a GET may ask for it.
    listing = method == "list"
    try:
        response = peer.pool.urlopen(
            "GET" if listing else method.upper(),
            f"/v1/{path}" + ("?list=true" if listing else ""),
            body=None if body is None else json.dumps(body),
            headers={"X-Vault-Request": "true", "Content-Type": "application/json", **headers},
            timeout=urllib3.Timeout(connect=min(_CONNECT_SECONDS, seconds), read=seconds),
            redirect=False,
            retries=False,
        )
        status, content = response.status, response.data
    except SSLError:
        raise _NoAnswerError(Trouble.UNTRUSTED, went_out=False) from None
    except (ConnectTimeoutError, NewConnectionError):
        raise _NoAnswerError(Trouble.UNREACHABLE, went_out=False) from None
    except ReadTimeoutError:
        raise _NoAnswerError(Trouble.SLOW, went_out=True) from None
    except ProtocolError:
        # The connection was cut off while we waited.
        raise _NoAnswerError(Trouble.UNREACHABLE, went_out=True) from None
    except (HTTPError, OSError):
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
        if b"\\u" in content:
            # Half a character is no text: nothing of it could be sent on.
            json.dumps(parsed, ensure_ascii=False).encode()
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
