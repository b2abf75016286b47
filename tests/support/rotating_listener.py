"""A listener whose certificate changes again and again while callers come and go.

    python -m tests.support.rotating_listener CHANGES

Ends with 0 when no handshake was refused. In a process of its own, because what is tried is whether
it dies: grpcio's core uses a listener's TLS settings without a lock while another handshake
replaces them (https://github.com/grpc/grpc/issues/36693).
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import socket
import ssl
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc

from sealward.kit.pinning import Pins
from sealward.kit.tls import Credentials
from tests.support.issuing import material

_CALLERS = 6


def main() -> int:
    changes = int(sys.argv[1])
    credentials = Credentials(material())
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_secure_port("127.0.0.1:0", credentials.server())
    server.start()
    pins = Pins(("127.0.0.1", port))
    credentials.before_change(pins.pin)
    stop = threading.Event()
    refused: list[str] = []
    threads = [threading.Thread(target=_call, args=(port, stop, refused)) for _ in range(_CALLERS)]
    for thread in threads:
        thread.start()
    for number in range(changes):
        # Other bytes of the same meaning: a renewal as the listener sees it.
        changed = replace(material(), bundle_pem=material().bundle_pem + b"\n" * (number + 1))
        credentials.install(changed)
        _handshake(port)
    stop.set()
    for thread in threads:
        thread.join()
    server.stop(0).wait()
    pins.close()
    print(changes, len(refused), *sorted(set(refused)))
    return 1 if refused else 0


def _call(port: int, stop: threading.Event, refused: list[str]) -> None:
    while not stop.is_set():
        try:
            _handshake(port)
        except OSError as error:
            refused.append(type(error).__name__)


def _handshake(port: int) -> None:
    context = Credentials(material()).ssl_context(ssl.Purpose.SERVER_AUTH)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain) as secure,
    ):
        secure.recv(1)


if __name__ == "__main__":
    sys.exit(main())
