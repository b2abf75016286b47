"""Requests to the identity provider: the one place of the gateway that calls out.

Only addresses of the hosts that were set, HTTPS alone, against the certificate authority that was
set; no proxy, no redirect, no retry; an answer has a largest size and a time by which it is there,
and few are under way at once, so that a provider that hangs holds up nothing but its own logins.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason

LARGEST = 256 << 10
"""Bytes that an answer may have."""
SECONDS = 5.0
"""By then, after the handshake, an answer is there, all of it."""
AT_ONCE = 4
"""Requests under way at most."""
_CONNECT_SECONDS = 2.0


class EgressError(Exception):
    """An answer that says no. `status` is its HTTP status, of 400 to 499."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status


def unavailable() -> SealwardError:
    """The provider cannot be asked."""
    return SealwardError(
        Reason.PROVIDER_UNAVAILABLE,
        "the identity provider cannot be reached: log in with a password, or later",
        retry_after=5.0,
    )


class Egress:
    """Thread-safe. Raises PROVIDER_UNAVAILABLE where there is no usable answer in time."""

    def __init__(self, hosts: Collection[str], ca_file: Path, seconds: float = SECONDS) -> None:
        """`hosts` are host:port, or a host alone for port 443; raise StartupError."""
        self._hosts = frozenset(_with_port(host) for host in hosts)
        self._seconds = seconds
        self._room = threading.BoundedSemaphore(AT_ONCE)
        try:
            self._tls = ssl.create_default_context(cafile=str(ca_file))
        except (OSError, ssl.SSLError):
            raise StartupError("the provider's authority (oidc_ca_file) cannot be read") from None
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2

    def may_reach(self, url: object) -> bool:
        """Whether an address is one that is asked: of a known host, HTTPS, without a user."""
        return self._place(url) is not None

    def get(self, url: str) -> dict[str, Any]:
        """Return the JSON object at an address."""
        try:
            return self._ask("GET", url, {}, b"")
        except EgressError:
            raise unavailable() from None

    def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
        """Send a form; return the JSON object of the answer; raise EgressError for a refusal."""
        sent = {"content-type": "application/x-www-form-urlencoded", **headers}
        return self._ask("POST", url, sent, urlencode(form).encode())

    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> dict[str, Any]:
        place = self._place(url)
        if place is None or not self._room.acquire(blocking=False):
            raise unavailable()
        try:
            status, data = self._exchange(*place, method, headers, body)
        except (OSError, http.client.HTTPException, ValueError):
            raise unavailable() from None
        finally:
            self._room.release()
        if 400 <= status < 500:
            raise EgressError(status)
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise unavailable() from None
        if status != 200 or not isinstance(found, dict):
            raise unavailable()
        return found

    def _exchange(
        self,
        host: str,
        port: int,
        target: str,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            host, port, timeout=_CONNECT_SECONDS, context=self._tls
        )
        try:
            connection.connect()
            reached: socket.socket = connection.sock
            reached.settimeout(self._seconds)
            # A time limit of a socket is for each read; whoever sends a byte now and then is
            # stopped by this one.
            timer = threading.Timer(self._seconds, _stop, (reached,))
            timer.daemon = True
            timer.start()
            try:
                sent = {"accept": "application/json", "accept-encoding": "identity", **headers}
                connection.request(method, target, body or None, sent)
                # Closed by itself only where it was read to its end.
                with connection.getresponse() as response:
                    data = response.read(LARGEST + 1)
                    left = response.length
            finally:
                timer.cancel()
        finally:
            connection.close()
        if len(data) > LARGEST or (left or 0) > 0:
            raise ValueError
        return response.status, data

    def _place(self, url: object) -> tuple[str, int, str] | None:
        if not isinstance(url, str):
            return None
        try:
            parts = urlsplit(url)
            port = parts.port or 443
        except ValueError:
            return None
        host = parts.hostname or ""
        if parts.scheme != "https" or parts.username is not None or parts.fragment:
            return None
        if f"{host}:{port}" not in self._hosts or not url.isascii() or " " in url:
            return None
        return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _stop(reached: socket.socket) -> None:
    with contextlib.suppress(OSError):
        reached.shutdown(socket.SHUT_RDWR)


def _with_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return host.lower() if colon and port.isdigit() and name else f"{host.lower()}:443"
