"""Enrolment folder, renewal of listeners, and the metrics listener's door."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import CollectorRegistry

from sealward.kit.enroll import enroll, private_folder, write_private
from sealward.kit.errors import StartupError
from sealward.kit.metrics import MetricsListener, ServerMetrics
from sealward.kit.reasons import Code
from sealward.kit.revocation import Revocations
from sealward.kit.settings import split_address
from sealward.kit.tls import Credentials, load_material

TD = "sealward.local"


def wait_for(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_enrolment_takes_only_a_certificate_for_its_own_key(authority: Any, tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "enroll")
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(enroll(folder, "audit", 20)))
    thread.start()
    wait_for((folder / "audit.csr").exists)
    assert (folder / "audit.csr").stat().st_mode & 0o777 == 0o600
    foreign = authority.issue(f"spiffe://{TD}/service/audit")
    write_private(folder / "ca.pem", authority.pem)
    write_private(folder / "audit.crt", foreign.chain_pem)  # for another key: must be waited past
    csr = x509.load_pem_x509_csr((folder / "audit.csr").read_bytes())
    leaf = authority._build(csr.subject, csr.public_key(), [])
    write_private(folder / "audit.crt", leaf.public_bytes(Encoding.PEM))
    thread.join(20)
    assert got
    assert b"PRIVATE" not in b"".join(p.read_bytes() for p in folder.iterdir())
    assert "PRIVATE" not in repr(got[0])


def test_enrolment_gives_up_with_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="is the keys service running"):
        enroll(tmp_path / "e", "audit", 0.1)


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(StartupError, match="chmod 700"):
        private_folder(folder)


def test_write_private_leaves_old_content_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_private(path, b"old")
    with pytest.raises(TypeError):
        write_private(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_material_must_fit_together(authority: Any) -> None:
    one, two = authority.issue(f"spiffe://{TD}/user/a"), authority.issue(f"spiffe://{TD}/user/b")
    with pytest.raises(StartupError, match="does not belong"):
        load_material(one.key_pem, two.chain_pem, authority.pem)
    with pytest.raises(StartupError, match="not valid PEM"):
        load_material(one.key_pem, b"nonsense", authority.pem)


def scrape(address: str, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection(split_address(address), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        found = b""
        while chunk := secure.recv(65536):
            found += chunk
        return found


def test_metrics_take_connections_up_to_a_bound(authority: Any) -> None:
    server = authority.issue(f"spiffe://{TD}/service/audit", dns=("localhost",))
    listener = MetricsListener(
        CollectorRegistry(), Credentials(server), "127.0.0.1:0", Revocations()
    )
    listener.start()
    host, port = listener.address.rsplit(":", 1)
    with ExitStack() as held:
        silent = [
            held.enter_context(socket.create_connection((host, int(port)), timeout=10))
            for _ in range(100)
        ]
        # Who is over the bound is told so at once; the others may take their time to say hello.
        assert silent[-1].recv(1) == b""
        threads = [t for t in threading.enumerate() if "process_request_thread" in t.name]
        assert len(threads) == 64
    client = Credentials(authority.issue(f"spiffe://{TD}/user/prometheus"))
    context = client.ssl_context(ssl.Purpose.SERVER_AUTH)
    deadline = time.monotonic() + 20
    answer = b""
    while not answer and time.monotonic() < deadline:
        with suppress(OSError):
            answer = scrape(listener.address, context)
    assert answer
    listener.stop()


def test_metrics_want_a_certificate_and_follow_renewal(authority: Any) -> None:
    registry = CollectorRegistry()
    ServerMetrics(registry).handled("/a.B/C", Code.OK, 0.1)
    server = authority.issue(f"spiffe://{TD}/service/audit", dns=("localhost",))
    credentials = Credentials(server)
    revocations = Revocations()
    listener = MetricsListener(registry, credentials, "127.0.0.1:0", revocations)
    listener.start()
    client = Credentials(authority.issue(f"spiffe://{TD}/user/prometheus"))
    context = client.ssl_context(ssl.Purpose.SERVER_AUTH)
    assert b'sealward_rpc_calls_total{code="OK",method="/a.B/C"} 1.0' in scrape(
        listener.address, context
    )
    # The next handshake takes the renewed certificate: one from another authority is not trusted.
    other = type(authority)("other")
    credentials.install(other.issue(f"spiffe://{TD}/service/audit", dns=("localhost",)))
    with pytest.raises(ssl.SSLError):
        scrape(listener.address, context)
    credentials.install(server)
    nobody = ssl.create_default_context(cadata=authority.pem.decode())
    with pytest.raises((ssl.SSLError, ConnectionError)):
        assert scrape(listener.address, nobody) == b"never"
    old = client.ssl_context(ssl.Purpose.SERVER_AUTH)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        scrape(listener.address, old)
    revocations.learn(1, [client.material.serial])
    with suppress(OSError):
        assert scrape(listener.address, context) == b""
    listener.stop()
