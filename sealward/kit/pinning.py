"""Keeps the TLS settings of a listener in memory while they are replaced.

grpcio's core takes new settings under a lock and uses them without one: a handshake that has just
read the old ones may find them freed by the next handshake, which replaces them. The process dies
then (https://github.com/grpc/grpc/issues/36693, open). A handshake that is under way holds the
settings it began with; so before they are replaced one is begun, by ourselves, and left as it is
for longer than any other can be about to begin.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections import deque
from contextlib import suppress

_CONNECT_SECONDS = 2.0
_HELD = 3
"""How many are kept: changes may follow one another at once."""
_HOLD_SECONDS = 30.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1", "": "127.0.0.1"}  # noqa: S104


class Pins:
    """Handshakes of our own with a listener. Thread-safe."""

    def __init__(self, address: tuple[str, int], seconds: float = _HOLD_SECONDS) -> None:
        host, port = address
        self._address = (_ANYWHERE.get(host, host.strip("[]")), port)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._held: deque[socket.socket] = deque()

    def pin(self) -> bool:
        """Begin a handshake and hold it for a while; False where the listener does not answer."""
        try:
            begun = _begin(self._address)
        except OSError:
            return False
        with self._lock:
            self._held.append(begun)
            # Many changes at once: the settings of the first are not in use any more.
            late = self._held.popleft() if len(self._held) > _HELD else None
        if late is not None:
            late.close()
        timer = threading.Timer(self._seconds, self._let_go, (begun,))
        timer.daemon = True
        timer.start()
        return True

    def close(self) -> None:
        """Let all of them go."""
        with self._lock:
            held, self._held = list(self._held), deque()
        for one in held:
            one.close()

    def _let_go(self, begun: socket.socket) -> None:
        with self._lock:
            if begun in self._held:
                self._held.remove(begun)
        begun.close()


def _begin(address: tuple[str, int]) -> socket.socket:
    """Return a connection on which the listener has answered a ClientHello. Raise OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It is not finished, so it matters to nobody whose certificate comes.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = context.wrap_bio(incoming, outgoing)
    with suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    connection = socket.create_connection(address, timeout=_CONNECT_SECONDS)
    try:
        connection.sendall(outgoing.read())
        if not connection.recv(1):
            raise ConnectionResetError
    except OSError:
        connection.close()
        raise
    return connection
