"""Looks for secrets wherever a running suite could have left them."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path

from sealward.cli.certificates import ensure_admin
from sealward.kit.settings import split_address
from sealward.kit.tls import Credentials
from tests.support.suites import RunningSuite


class Searched:
    """Binary secrets (32 bytes and more) in each form that they could be written in.

    Plain, reversed, hexadecimal, base64 and its form for URLs at any alignment, Python's repr.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._exact: list[bytes] = []
        self._folded: list[bytes] = []
        for secret in secrets:
            self._exact += [secret, secret[::-1], repr(secret)[2:-1].encode()]
            self._folded.append(secret.hex().encode())
            for shift in range(3):
                # The middle of its base64, whatever stands before and behind it.
                encoded = base64.b64encode(b"\x00" * shift + secret)
                middle = encoded[4 if shift else 0 : -4]
                self._exact += [middle, middle.translate(bytes.maketrans(b"+/", b"-_"))]

    def found_in(self, data: bytes) -> bool:
        """True when one of them is in there."""
        lower = data.lower()
        return any(form in data for form in self._exact) or any(
            form in lower for form in self._folded
        )

    def files(self, root: Path) -> list[Path]:
        """Files below a folder that have one in their name or content."""
        found = []
        for path in sorted(root.rglob("*")):
            try:
                data = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            name = path.relative_to(root)
            if self.found_in(str(name).encode() + b"\n" + data):
                found.append(name)
        return found


def scraped(suite: RunningSuite) -> Iterator[bytes]:
    """The metrics of each service."""
    context = Credentials(ensure_admin(suite.suite)).ssl_context(ssl.Purpose.SERVER_AUTH)
    context.check_hostname = False
    for places in suite.suite.endpoints().values():
        address = split_address(places["metrics"])
        with (
            socket.create_connection(address, timeout=10) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            data = b"".join(iter(lambda: secure.recv(65536), b""))
        assert b"sealward_build_info" in data
        yield data
