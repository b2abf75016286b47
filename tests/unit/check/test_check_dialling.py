"""What counts as an answer of a listener that is tried in a wrong way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sealward.cli.check.dialling import dial
from tests.conftest import CertificateAuthority

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A listener that reads once, says this, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)


@pytest.mark.parametrize(
    ("kind", "answer", "answered"),
    [
        ("address", SETTINGS, True),
        ("address", b"", False),
        ("address", b"\x15\x03\x01\x00\x02\x02\x46", False),  # a TLS alert
        ("metrics", b"HTTP/1.0 200 OK\r\n", True),
        ("metrics", b"\x15\x03\x01\x00\x02\x02\x46", False),
        ("store", b"+PONG\r\n", True),
        ("store", b"-NOAUTH Authentication required.\r\n", True),
        ("store", b"", False),
    ],
)
def test_in_plaintext(
    authority: CertificateAuthority, kind: str, answer: bytes, answered: bool
) -> None:
    material = authority.issue("spiffe://sealward.local/admin/local")
    with saying(answer) as address:
        assert dial(address, kind, "plaintext", material) is answered


def test_nobody_listens(authority: CertificateAuthority) -> None:
    material = authority.issue("spiffe://sealward.local/admin/local")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(OSError, match="refused"):
        dial(address, "metrics", "plaintext", material)
    with pytest.raises(ValueError, match="no way"):
        dial(address, "metrics", "no way at all", material)
