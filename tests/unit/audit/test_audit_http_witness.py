"""A witness over HTTP: bounded whatever the other side does, TLS verified, connections kept."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from sealward.kit.errors import StartupError
from services.audit.cosigning import http_witness
from services.audit.cosigning.asking import Answer, WitnessAwayError
from services.audit.cosigning.http_witness import HttpWitness, check_url, tls_context
from tests.support.cosigners import ed25519

VERIFIERS = [ed25519("w.example").verifier]


class Server:
    """A server on loopback whose answers a test writes."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.connections = 0
        self.answer: Callable[[BaseHTTPRequestHandler], Any] = lambda handler: reply(handler, 200)
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append((self.command, self.path, body))
                server.answer(self)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


MADE: list[HttpWitness] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what a test has opened, the side that asks first."""
    yield
    while MADE:
        MADE.pop().close()


def witness(
    port: int,
    *,
    path: str = "",
    scheme: str = "http",
    seconds: float = 10.0,
    ca: Path | None = None,
) -> HttpWitness:
    made = HttpWitness(
        "w",
        f"{scheme}://localhost:{port}{path}",
        VERIFIERS,
        seconds=seconds,
        context=tls_context(ca),
    )
    MADE.append(made)
    return made


@pytest.mark.parametrize("path", ["", "/", "/some/prefix", "/some/prefix/"])
def test_asks_as_the_protocol_says(server: Server, path: str) -> None:
    server.answer = lambda handler: reply(handler, 409, b"7\n", Content_Type="text/x.tlog.size")
    found = witness(server.port, path=path)
    assert found.add_checkpoint(b"old 0\n\n...") == Answer(409, b"7\n")
    prefix = path.rstrip("/")
    assert server.requests == [("POST", f"{prefix}/add-checkpoint", b"old 0\n\n...")]
    server.answer = lambda handler: reply(handler, 200, b"note")
    assert found.latest("a log") == b"note"
    name = sha256(b"a log").hexdigest()
    assert server.requests[1][:2] == ("GET", f"{prefix}/{name}/checkpoint")
    server.answer = lambda handler: reply(handler, 404, b"no")
    assert found.latest("a log") == b""
    # All of it over one connection.
    assert server.connections == 1


def test_a_connection_that_was_closed_is_made_anew(server: Server) -> None:
    found = witness(server.port)
    for _ in range(3):
        assert found.add_checkpoint(b"x").status == 200
        server.answer = lambda handler: reply(handler, 200, Connection="close")
    assert len(server.requests) == 3

    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        server.answer = lambda other: reply(other, 200)
        handler.close_connection = True

    # One that was kept and then cut: asked once more, and no oftener.
    server.answer = lambda handler: reply(handler, 200)
    found.add_checkpoint(b"x")
    server.answer = hang_up
    assert found.add_checkpoint(b"x").status == 200
    server.answer = lambda handler: setattr(handler, "close_connection", True)
    before = len(server.requests)
    with pytest.raises(WitnessAwayError):
        found.add_checkpoint(b"x")
    assert len(server.requests) == before + 2


def test_nobody_listens() -> None:
    started = Server()
    started.close()
    with pytest.raises(WitnessAwayError):
        witness(started.port).add_checkpoint(b"x")


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.answer = lambda handler: reply(handler, 302, Location="http://localhost:1/elsewhere")
    assert witness(server.port).add_checkpoint(b"x").status == 302
    assert len(server.requests) == 1


def test_silence_ends(server: Server) -> None:
    server.answer = lambda handler: server.over.wait(60)
    with pytest.raises(WitnessAwayError):
        witness(server.port, seconds=0.2).add_checkpoint(b"x")


@pytest.mark.parametrize("part", ["headers", "body"])
def test_bytes_that_come_one_by_one_end_too(server: Server, part: str) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if part == "body":
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        else:
            handler.flush_headers()
        while not server.over.wait(0.02):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return

    server.answer = drip
    with pytest.raises(WitnessAwayError):
        witness(server.port, seconds=0.5).add_checkpoint(b"x")
    assert len(server.requests) == 1


def test_an_answer_without_end_is_not_read(server: Server) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while not server.over.is_set():
            try:
                handler.wfile.write(bytes(1 << 16))
            except OSError:
                return

    server.answer = endless
    with pytest.raises(WitnessAwayError):
        witness(server.port).add_checkpoint(b"x")


def test_what_is_no_http(server: Server) -> None:
    server.answer = lambda handler: handler.wfile.write(b"220 mail.example ESMTP\r\n\r\n")
    with pytest.raises(WitnessAwayError):
        witness(server.port).add_checkpoint(b"x")


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture
def ca(tmp_path: Path) -> tuple[trustme.CA, Path]:
    made = trustme.CA()
    path = tmp_path / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path


def secure(ca: trustme.CA, name: str) -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    return Server(context)


def test_a_certificate_is_verified(ca: tuple[trustme.CA, Path], tmp_path: Path) -> None:
    server = secure(ca[0], "localhost")
    try:
        found = witness(server.port, scheme="https", ca=ca[1])
        assert found.add_checkpoint(b"x").status == 200
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        for wrong in (other, None):
            with pytest.raises(WitnessAwayError):
                witness(server.port, scheme="https", ca=wrong).add_checkpoint(b"x")
        assert len(server.requests) == 1
    finally:
        server.close()


def test_a_name_is_verified(ca: tuple[trustme.CA, Path]) -> None:
    server = secure(ca[0], "other.example")
    try:
        with pytest.raises(WitnessAwayError):
            witness(server.port, scheme="https", ca=ca[1]).add_checkpoint(b"x")
        assert not server.requests
    finally:
        server.close()


def test_a_proxy_of_the_environment_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy is asked for a tunnel; the witness's name is told, nothing else."""
    asked: list[bytes] = []

    def connect(handler: BaseHTTPRequestHandler) -> None:
        raise AssertionError("a proxy gets no request but CONNECT")

    server.answer = connect
    real = BaseHTTPRequestHandler.parse_request

    def parse(self: BaseHTTPRequestHandler) -> bool:
        asked.append(self.raw_requestline)
        return real(self)

    monkeypatch.setattr(BaseHTTPRequestHandler, "parse_request", parse)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    found = HttpWitness(
        "w", "https://witness.example/w", VERIFIERS, seconds=10, context=tls_context(None)
    )
    with pytest.raises(WitnessAwayError):
        found.add_checkpoint(b"secret")
    assert [line.split()[:2] for line in asked] == [[b"CONNECT", b"witness.example:443"]]
    monkeypatch.setenv("no_proxy", "witness.example")
    assert http_witness._proxy_of("witness.example") is None


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "witness.example",
        "ftp://witness.example",
        "http://witness.example",
        "http://127.0.0.1.example",
        "https://",
        "https://user@witness.example",
        "https://user:word@witness.example",
        "https://witness.example/?x=1",
        "https://witness.example/#x",
        "https://witness.example:port",
        "https://[::1",
    ],
)
def test_what_is_no_url_of_a_witness(url: str) -> None:
    with pytest.raises(StartupError, match=r"^witness w: its URL"):
        check_url("w", url)


@pytest.mark.parametrize(
    "url",
    ["https://w.example", "https://w.example:444/a/b/", "http://127.0.0.1:1", "http://[::1]:1"],
)
def test_what_is_one(url: str) -> None:
    assert check_url("w", url).hostname


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"nothing")
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(StartupError, match="WITNESS_CA_FILE"):
            tls_context(path)
