"""A login at the identity provider: the browser there, its answer to a port of this machine.

Authorisation code with PKCE for a native application (RFC 8252, RFC 7636). The verifier is made
here and shown to the gateway alone, with the code; the gateway talks to the provider.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from sealward.cli.errors import CliError, Exit
from sealward.cli.output import line
from sealward.cli.suite import Suite

_PATH = "/callback"
_PAGE = (
    b"<!doctype html><meta charset=utf-8><title>Sealward</title><p>You may close this page and go "
    b"back to the terminal."
)


def login_at_provider(suite: Suite, user: str, code: str, *, browser: bool) -> tuple[str, int]:
    """Log in; return token and expiry (epoch seconds). `browser`: open one, else say where to go.

    `code` is of the second factor here, where the user has one; asked on the terminal else.
    """
    import typer

    from sealward.api.gateway.v1 import oidc_pb2 as pb
    from sealward.api.gateway.v1.oidc_pb2_grpc import OidcServiceStub
    from sealward.cli.connect import CALL_SECONDS, user_channel
    from sealward.cli.login import keep_session
    from sealward.cli.rpc import calling

    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
    with Answer(state) as answer, user_channel(suite, user) as channel:
        stub = OidcServiceStub(channel)
        with calling("beginning the login"):
            begun = stub.BeginOidcLogin(
                pb.BeginOidcLoginRequest(
                    redirect_uri=answer.address, code_challenge=challenge, state=state
                ),
                timeout=CALL_SECONDS,
            )
        _go(begun.authorization_url, browser=browser)
        came = answer.wait(begun.expires_in, begun.issuer)
        if begun.second_factor and not code and sys.stdin.isatty():
            code = typer.prompt("code", err=True)
        with calling("ending the login"):
            done = stub.FinishOidcLogin(
                pb.FinishOidcLoginRequest(
                    login_id=begun.login_id,
                    authorization_code=came,
                    code_verifier=verifier,
                    code=code,
                ),
                timeout=CALL_SECONDS,
            )
    keep_session(suite, user, done.token, done.session_id)
    return done.token, int(done.expires)


class Answer:
    """Waits on a loopback port for what the provider sends the browser back with.

    A request with another state, or to another path, is answered 404 and waited on: it is not ours.
    """

    def __init__(self, state: str) -> None:
        self._state = state
        self._came: dict[str, str] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5
            server_version = "sealward"
            sys_version = ""

            def do_GET(self) -> None:
                known = outer._take(self.path)
                self.send_response(200 if known else 404)
                self.send_header("content-type", "text/html; charset=utf-8")
                self.send_header("content-length", str(len(_PAGE) if known else 0))
                self.send_header("cache-control", "no-store")
                self.send_header("referrer-policy", "no-referrer")
                self.end_headers()
                self.wfile.write(_PAGE if known else b"")

            def log_message(self, *_: Any) -> None:
                """Say nothing: the path holds the code."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}{_PATH}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def wait(self, seconds: float, issuer: str) -> str:
        """Return the code; raise CliError when none comes, or the provider says no."""
        end = time.monotonic() + seconds
        while self._came is None:
            self._server.timeout = end - time.monotonic()
            if self._server.timeout <= 0:
                raise CliError("nobody came back from the identity provider in time")
            self._server.handle_request()
        came = self._came
        # RFC 9207: an answer of another provider is not for us.
        if came.get("iss", issuer) != issuer:
            raise CliError("the answer is of another identity provider")
        if not came.get("code"):
            # The provider's own words are not repeated: anybody could have sent the browser here.
            raise CliError("the identity provider did not let you in", code=Exit.FAILED)
        return came["code"]

    def _take(self, target: str) -> bool:
        parts = urlsplit(target)
        try:
            found = parse_qs(parts.query, max_num_fields=16)
        except ValueError:
            return False
        given = {name: values[0] for name, values in found.items() if len(values) == 1}
        right = hmac.compare_digest(given.get("state", "").encode(), self._state.encode())
        if parts.path != _PATH or not right:
            return False
        self._came = given
        return True


def _go(url: str, *, browser: bool) -> None:
    import webbrowser

    if not (browser and webbrowser.open(url)):
        line("log in at the identity provider:", err=True)
        line(url, err=True)
