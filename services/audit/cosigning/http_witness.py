"""A witness elsewhere: C2SP tlog-witness over HTTPS.

The connection is kept between requests. Nothing but checkpoints goes there: origin, size, root and
signatures. Every call ends within a bounded time, and no answer longer than the protocol has is
read.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from sealward.kit.errors import StartupError
from sealward.tlog.cosignature import CosignatureVerifier
from sealward.tlog.note import MAX_NOTE_SIZE
from services.audit.cosigning.asking import Answer, WitnessAwayError

LOOPBACK = ("127.0.0.1", "::1", "localhost")

_FAILED = (OSError, http.client.HTTPException, ValueError)


class HttpWitness:
    """asking.Witness over HTTPS. Thread-safe; one request at a time."""

    def __init__(
        self,
        name: str,
        url: str,
        verifiers: Sequence[CosignatureVerifier],
        *,
        seconds: float,
        context: ssl.SSLContext,
    ) -> None:
        """Take the submission prefix of a witness; raise StartupError for a URL that cannot be."""
        self.name = name
        self.url = url
        self.verifiers = tuple(verifiers)
        self._parts = check_url(name, url)
        self._seconds = seconds
        self._context = context
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def add_checkpoint(self, body: bytes) -> Answer:
        """See asking.Witness."""
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        return self._request("POST", "/add-checkpoint", body, headers)

    def latest(self, origin: str) -> bytes:
        """See asking.Witness: from the monitoring prefix, where that is the submission prefix."""
        answer = self._request("GET", f"/{sha256(origin.encode()).hexdigest()}/checkpoint")
        return answer.body if answer.status == http.HTTPStatus.OK else b""

    def close(self) -> None:
        """Give the connection up."""
        with self._lock:
            self._drop()

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        with self._lock:
            # A kept connection may have been closed by the other side meanwhile: then once more.
            for kept in (self._connection is not None, False):
                connection = self._connection = self._connection or self._connect()
                with _ending(connection, self._seconds) as late:
                    try:
                        connection.request(
                            method, self._parts.path.rstrip("/") + path, body, headers or {}
                        )
                        answer = self._read(connection.getresponse())
                        # What was cut off looks like an end.
                        if not late.is_set():
                            return answer
                    except _FAILED:
                        pass
                self._drop()
                if not kept or late.is_set():
                    break
            raise WitnessAwayError

    def _read(self, response: http.client.HTTPResponse) -> Answer:
        data = response.read(MAX_NOTE_SIZE + 1)
        if len(data) > MAX_NOTE_SIZE:
            raise ValueError
        if response.will_close:
            self._drop()
        return Answer(response.status, data)

    def _connect(self) -> http.client.HTTPConnection:
        parts = self._parts
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._seconds)
        proxy = _proxy_of(host)
        if proxy is None:
            return http.client.HTTPSConnection(
                host, port, timeout=self._seconds, context=self._context
            )
        through = http.client.HTTPSConnection(
            proxy.hostname or "", proxy.port or 3128, timeout=self._seconds, context=self._context
        )
        through.set_tunnel(host, port or 443)
        return through

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*_FAILED):
                connection.close()


@contextmanager
def _ending(connection: http.client.HTTPConnection, seconds: float) -> Iterator[threading.Event]:
    """Cut a connection off when its time is over, however slowly bytes go on coming."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        if connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def check_url(name: str, url: str) -> SplitResult:
    """Return the parts of a witness's URL; raise StartupError for one that is not to be used."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise StartupError(f"witness {name}: its URL cannot be read") from None
    plain = parts.scheme == "http" and parts.hostname in LOOPBACK
    if not parts.hostname or not (parts.scheme == "https" or plain):
        raise StartupError(f"witness {name}: its URL must be https")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise StartupError(f"witness {name}: its URL is a prefix, without query or user")
    return parts


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return how witnesses' certificates are verified; raise StartupError.

    `ca_file` has the certificates to trust (PEM); None = those of public authorities.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError):
        raise StartupError("the file of SEALWARD_AUDIT_WITNESS_CA_FILE cannot be read") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _proxy_of(host: str) -> SplitResult | None:
    """Return the proxy for https that the environment names, if it is for this host."""
    url = getproxies().get("https", "")
    if not url or proxy_bypass(host):
        return None
    return urlsplit(url if "://" in url else f"http://{url}")
