"""Deployments that are broken in one way, for the rows of the check to find.

Where it is cheap the thing itself is broken: a file's mode, a byte of the log, a listener that asks
for too little. For the rest a deployment that runs behaves otherwise in one answer.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from sealward.check.deployment import Reply, Settings
from sealward.cli.check.live import Live
from sealward.kit.tls import Credentials, Material

Calls = Callable[..., Reply]
"""Takes (service, method, body, **options), as Deployment.call does."""


class Broken:
    """A running deployment, but for what is given: `root`, `settings`, `call` and so on."""

    def __init__(self, live: Live, **instead: Any) -> None:
        self._live = live
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live, name)


def settings(live: Live, **options: Any) -> Settings:
    return replace(live.settings, **options)


def answers(live: Live, reason: str, reply: Reply | None = None) -> Broken:
    """What is refused with this reason is answered."""

    def call(service: str, method: str, body: bytes = b"", **options: Any) -> Reply:
        real = live.call(service, method, body, **options)
        given = reply or Reply("OK", event_id=real.event_id)
        return given if real.reason == reason else real

    return Broken(live, call=call)


def answers_to(live: Live, name: str, reply: Reply) -> Broken:
    """A method gives one answer, and does nothing."""

    def call(service: str, method: str, body: bytes = b"", **options: Any) -> Reply:
        if method.endswith(f"/{name}"):
            return reply
        return live.call(service, method, body, **options)

    return Broken(live, call=call)


def edited(live: Live, name: str, kind: type[Message], edit: Callable[[Any], None]) -> Broken:
    """The answer of a method is changed on its way out."""

    def call(service: str, method: str, body: bytes = b"", **options: Any) -> Reply:
        real = live.call(service, method, body, **options)
        if not method.endswith(f"/{name}") or not real.ok:
            return real
        message = kind()
        message.ParseFromString(real.body)
        edit(message)
        return replace(real, bodies=(message.SerializeToString(),))

    return Broken(live, call=call)


def asked_otherwise(
    live: Live, name: str, kind: type[Message], edit: Callable[[Any], None]
) -> Broken:
    """The question to a method is changed on its way in."""

    def call(service: str, method: str, body: bytes = b"", **options: Any) -> Reply:
        if method.endswith(f"/{name}"):
            message = kind()
            message.ParseFromString(body)
            edit(message)
            body = message.SerializeToString()
        return live.call(service, method, body, **options)

    return Broken(live, call=call)


def unrecorded(live: Live, name: str) -> Broken:
    """A method is answered without a record."""

    def call(service: str, method: str, body: bytes = b"", **options: Any) -> Reply:
        real = live.call(service, method, body, **options)
        return replace(real, event_id="") if method.endswith(f"/{name}") else real

    return Broken(live, call=call)


@contextmanager
def leaking(live: Live, file: Path) -> Iterator[Broken]:
    """What callers send is written into a file in clear."""
    assert live.root is not None

    def call(service: str, method: str, body: bytes = b"", **options: Any) -> Reply:
        with file.open("ab") as out:
            out.write(body)
        file.chmod(0o600)
        return live.call(service, method, body, **options)

    try:
        yield Broken(live, call=call)
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def weak_listener(live: Live, material: Material, admin: Material) -> Iterator[Broken]:
    """A metrics listener of the right authority that asks for no certificate and takes TLS 1.2."""
    context = Credentials(material).ssl_context(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as server:
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                with suppress(OSError):
                    connection, _ = server.accept()
                    with connection, context.wrap_socket(connection, server_side=True) as secure:
                        if secure.recv(4096).startswith(b"GET"):
                            secure.sendall(b"HTTP/1.0 200 OK\r\n\r\nsealward_build_info 1\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        places = {name: dict(found) for name, found in live.endpoints().items()}
        places["audit"]["metrics"] = f"127.0.0.1:{server.getsockname()[1]}"
        weak = Live(places, admin, live.settings)
        try:
            yield Broken(live, dial=weak.dial, endpoints=weak.endpoints)
        finally:
            stopped.set()
            with suppress(OSError):
                socket.create_connection(server.getsockname(), timeout=5).close()
            thread.join(5)
