"""A real Redis server as in production: TLS, and the redis.conf and users.acl that are shipped."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from sealward.cli.suite import free_ports
from tests.conftest import CertificateAuthority

USER, PASSWORD = "sealward-gateway", "a-password-of-the-tests-0001"
_SHIPPED = Path(__file__).parents[2] / "deploy" / "redis"


def binary() -> str:
    """Return the server's path; skip the test without one."""
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no Redis server is installed (apt-get install redis-server)")
    return found


def acl(password: str = PASSWORD) -> str:
    """Return the shipped users with a password filled in."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    text = (_SHIPPED / "users.acl").read_text()
    for name in ("GATEWAY", "MONITOR"):
        text = text.replace(f"@{name}_PASSWORD_SHA256@", digest)
    return text


@dataclass
class RedisServer:
    """One server in a folder, trusting the client certificates of `authority`."""

    folder: Path
    authority: CertificateAuthority
    users: str = field(default_factory=acl)
    port: int = 0
    trusted: bytes = b""
    replica_of: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_ports(1)[0]
        material = self.authority.issue("spiffe://sealward.local/service/redis")
        for name, data in (
            ("server.pem", material.chain_pem), ("server.key", material.key_pem),
            ("ca.pem", self.trusted or self.authority.pem), ("users.acl", self.users.encode()),
        ):  # fmt: skip
            (self.folder / name).write_bytes(data)
        text = (_SHIPPED / "redis.conf").read_text()
        text = text.replace("/etc/sealward/redis/", f"{self.folder}/")
        text = text.replace("/var/lib/sealward-redis", str(self.folder))
        text = text.replace("tls-port 6379", f"tls-port {self.port}")
        if self.replica_of:
            text += f"\nreplicaof 127.0.0.1 {self.replica_of}\n"
            text += f"masteruser replica\nmasterauth {PASSWORD}\n"
        (self.folder / "redis.conf").write_text(text)
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [binary(), str(self.folder / "redis.conf")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while True:
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the process still: the network is there, nobody answers."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def credentials(self, folder: Path, authority: CertificateAuthority | None = None) -> Path:
        """Write what a gateway needs to get in: ca.pem, cert.pem, key.pem, password."""
        folder.mkdir(mode=0o700, exist_ok=True)
        material = (authority or self.authority).issue("spiffe://sealward.local/client/sessions")
        for name, data in (
            ("ca.pem", self.authority.pem), ("cert.pem", material.chain_pem),
            ("key.pem", material.key_pem), ("password", PASSWORD.encode()),
        ):  # fmt: skip
            (folder / name).write_bytes(data)
            (folder / name).chmod(0o600)
        return folder

    def client(self, folder: Path, user: str = USER, password: str = PASSWORD) -> redis.Redis:
        """A client of the tests' own, with the certificate in a folder."""
        return redis.Redis(
            host="127.0.0.1", port=self.port, username=user, password=password, ssl=True,
            ssl_ca_certs=str(folder / "ca.pem"), ssl_certfile=str(folder / "cert.pem"),
            ssl_keyfile=str(folder / "key.pem"), protocol=2,
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"rediss://{USER}@127.0.0.1:{self.port}"


class Forwarder:
    """An address that outlives the server behind it, as a virtual address or a name does."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            try:
                two = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                one.close()
                continue
            self._open += [one, two]
            for source, sink in ((one, two), (two, one)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
