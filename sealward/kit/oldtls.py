"""A listener that accepts TLS 1.2 does not serve: grpcio has no option for it, so it is tried."""

from __future__ import annotations

import socket
import ssl

from sealward.kit.errors import StartupError
from sealward.kit.settings import split_address


def refuse_old_tls(address: str) -> None:
    """Dial a listener of ours with TLS 1.2; raise StartupError when the handshake succeeds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(split_address(address), timeout=5) as plain,
            context.wrap_socket(plain),
        ):
            accepted = True
    except (ssl.SSLError, OSError):
        accepted = False
    if accepted:
        raise StartupError("the listener accepts TLS 1.2: refusing to serve")
