"""Stands between a client and a real Vault: notes what passes, and what it is told to do to it."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HOP = {"host", "connection", "content-length", "accept-encoding", "transfer-encoding"}


class Proxy:
    """`seen`: path and headers of each request. `answer`: (status, headers) instead of Vault's.

    While `hold` is not set, requests wait, as many as come.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.hold = threading.Event()
        self.hold.set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                proxy.seen.append((self.path, dict(self.headers)))
                proxy.hold.wait(30)
                status, headers, data = proxy.answer or proxy.forward(
                    self.command, self.path, dict(self.headers), body
                )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        for method in ("GET", "POST", "PUT", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(  # noqa: S310 - a server of the test's own
            self.upstream + path,
            data=body,
            method=method,
            headers={name: v for name, v in headers.items() if name.lower() not in _HOP},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                return answer.status, _kept(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _kept(error.headers), error.read()

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()


def _kept(headers: Any) -> dict[str, str]:
    kind = headers.get("Content-Type")
    return {"Content-Type": kind} if kind else {}


@contextmanager
def proxy_to(upstream: str) -> Iterator[Proxy]:
    """A proxy on a port of its own."""
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
