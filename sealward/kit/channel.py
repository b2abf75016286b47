"""Channels to the other services, swapped when the certificate is renewed.

grpcio's client credentials are fixed when a channel is made (grpc/grpc#41779), so a renewed
certificate needs a new channel. The old one is closed after its calls had time to end.
"""

from __future__ import annotations

import threading

import grpc

from sealward.kit.tls import Credentials

# As long as any call between services may last: what is under way ends where it began.
_LINGER_SECONDS = 60.0

OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # The core takes this as the time that one attempt to connect may last.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A peer that hangs without closing its connection is noticed within seconds.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each holder has its own connections; sharing would outlive the certificate.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Channels:
    """The channel to one service. `server_name` is the DNS name that its certificate must carry."""

    def __init__(self, credentials: Credentials, address: str, server_name: str) -> None:
        self._credentials = credentials
        self._address = address
        self._server_name = server_name
        self._lock = threading.Lock()
        self._channel = self._open()
        self.generation = 0
        credentials.on_change(self._renew)

    def get(self) -> grpc.Channel:
        """Return the channel in use."""
        with self._lock:
            return self._channel

    def close(self) -> None:
        """Close the channel in use."""
        self.get().close()

    def _open(self) -> grpc.Channel:
        return grpc.secure_channel(
            self._address,
            self._credentials.channel(),
            [*OPTIONS, ("grpc.ssl_target_name_override", self._server_name)],
        )

    def _renew(self) -> None:
        fresh = self._open()
        with self._lock:
            old, self._channel = self._channel, fresh
            self.generation += 1
        timer = threading.Timer(_LINGER_SECONDS, old.close)
        timer.daemon = True
        timer.start()
