"""A listener's TLS settings outlive their replacement, and are replaced only when they changed."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from sealward.kit.pinning import Pins
from sealward.kit.tls import Credentials, _Changes
from tests.support.issuing import material


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening


def test_nothing_new_is_said_while_nothing_has_changed() -> None:
    """Whatever is said at a handshake frees what another handshake may be about to use."""
    credentials = Credentials(material())
    changes = _Changes(lambda: credentials.material, lambda m: m.bundle_pem)
    changes.configuration(credentials.material)
    assert changes() is None
    credentials.install(replace(material(), serial=8))
    assert changes() is not None
    assert changes() is None
    credentials.trust(material().bundle_pem)
    assert changes() is not None
    assert changes() is None


def test_a_change_is_prepared_before_it_is_seen() -> None:
    credentials = Credentials(material())
    seen: list[int] = []
    credentials.before_change(lambda: seen.append(credentials.material.serial))
    credentials.install(replace(material(), serial=8))
    credentials.trust(material().bundle_pem)
    assert seen == [material().serial, 8]


def test_a_pin_is_a_handshake_that_has_begun_and_is_let_go(listener: socket.socket) -> None:
    context = Credentials(material()).ssl_context(ssl.Purpose.CLIENT_AUTH)
    for seconds, close in ((0.05, False), (60.0, True)):
        pins = Pins(listener.getsockname(), seconds)
        taken: list[socket.socket] = []
        thread = threading.Thread(target=_answer, args=(listener, context, taken))
        thread.start()
        assert pins.pin()
        thread.join()
        if close:
            pins.close()
        with taken[0] as connection:
            connection.settimeout(20)
            assert _ended(connection)


def _answer(listener: socket.socket, context: ssl.SSLContext, taken: list[socket.socket]) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    connection, _ = listener.accept()
    incoming.write(connection.recv(4096))
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    connection.sendall(outgoing.read())
    taken.append(connection)


def _ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


def test_a_listener_that_does_not_answer_is_told(listener: socket.socket) -> None:
    address = listener.getsockname()
    listener.close()
    assert Pins(address).pin() is False


def test_certificates_change_under_load_and_the_process_lives() -> None:
    """Without any of it the process ends with SIGSEGV in some of ten runs."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.rotating_listener", "60"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
