"""Vault's API by hvac, over whatever sends.

hvac knows the paths and the parameters; what goes out, to which address, under which token and for
how long is the sender's business (wire.py). hvac's own client would take addresses, tokens and CA
bundles from the environment, and follow redirects with the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hvac.adapters import Adapter
from hvac.api.auth_methods import AppRole, Token
from hvac.api.secrets_engines import Pki, Transit
from hvac.api.system_backend import SystemBackend

from sealward.seal.secret import Secret
from services.keys.providers.vault.troubles import RefusedError
from services.keys.providers.vault.wire import Answer, Wire


class Send(Protocol):
    """What exchanges one call with Vault; `path` is without `/v1/`."""

    def __call__(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        /,
    ) -> Answer:
        """Return the answer."""


class Api:
    """hvac's interfaces; their methods return an Answer, and raise what the sender raises."""

    def __init__(self, send: Send) -> None:
        adapter = _Sending(send)
        self.adapter: Adapter = adapter
        """For what hvac has no method for."""
        self.approle = AppRole(adapter)
        self.pki = Pki(adapter)
        self.sys = SystemBackend(adapter)
        self.token = Token(adapter)
        self.transit = Transit(adapter)


def checked(
    wire: Wire, token: Secret | None = None, *, repeatable: bool = True, passing: int = 0
) -> Api:
    """Vault's API straight over the wire, outside of the service's session.

    Raises UnavailableError, and RefusedError for 4xx other than `passing`.
    """

    def send(
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> Answer:
        answer = wire.send(method, path, body, token=token, repeatable=repeatable, headers=headers)
        if answer.status >= 400 and answer.status != passing:
            raise RefusedError(answer.status, answer.errors)
        return answer

    return Api(send)


class _Sending(Adapter):  # type: ignore[misc] # hvac has no types
    """An adapter without a connection of its own."""

    def __init__(self, send: Send) -> None:
        # The base class makes a session of requests, with what the environment says.
        self._send = send

    def close(self) -> None:
        """The sender's connections are closed by whoever opened them."""

    def get_login_token(self, response: Answer) -> str:
        """Unused: tokens are the session's business."""
        raise NotImplementedError

    def login(self, url: str, use_token: bool = True, **kwargs: Any) -> Answer:  # noqa: ARG002
        """Log in; the token is in the answer and kept nowhere here."""
        return self.request("post", url, **kwargs)

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        raise_exception: bool = True,  # noqa: ARG002
        *,
        json: Mapping[str, Any] | None = None,
        wrap_ttl: str | None = None,
    ) -> Answer:
        """See hvac's Adapter. Anything else that hvac would hand to requests is a TypeError."""
        sent = {**(headers or {}), **({"X-Vault-Wrap-TTL": wrap_ttl} if wrap_ttl else {})}
        return self._send(method, url.strip("/").removeprefix("v1/"), json, sent or None)


def mount(path: str) -> str:
    """Return where a login method is mounted, as hvac wants it: without `auth/`."""
    return path.removeprefix("auth/")
