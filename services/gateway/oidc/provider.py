"""The identity provider: its addresses (OpenID Connect Discovery 1.0) and keys, kept a while."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway import jwks
from services.gateway.oidc.egress import Egress, EgressError, unavailable
from services.gateway.oidc.idtoken import ALGORITHMS
from services.gateway.tokens import Key

KEEP_SECONDS = 3600.0
"""How long keys are kept."""
ADDRESSES_SECONDS = 60.0
"""How long addresses are kept: an outage shows at the beginning of a login, not in the browser."""
REFRESH_SECONDS = 30.0
"""Between two fetches for a key id that is not known: whoever makes ids up gets none."""


AT_ONCE = 4
"""Logins that may be asking, or waiting to ask; the threads of the others stay free."""
PAUSE_SECONDS = 2.0
"""After an answer that did not come nobody asks for this long."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """What discovery says."""

    authorization: str
    token: str
    keys: str


class Provider:
    """Thread-safe. Every method may raise PROVIDER_UNAVAILABLE. `clock` never goes back."""

    def __init__(
        self,
        egress: Egress,
        issuer: str,
        client_id: str,
        client_secret: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self.client_id = client_id
        self._egress = egress
        self._secret = client_secret
        self._clock = clock
        self._lock = threading.Lock()
        self._addresses: tuple[Addresses, float] | None = None
        self._keys: list[dict[str, str]] = []
        self._fetched = float("-inf")
        self._room = threading.BoundedSemaphore(AT_ONCE)
        self._failed = float("-inf")

    def addresses(self) -> Addresses:
        """Return the addresses."""
        with self._asking(), self._lock:
            return self._known_addresses()

    def exchange(self, code: str, verifier: str, redirect_uri: str) -> tuple[str, str]:
        """Trade a code for an ID token and an access token; raise PROVIDER_REFUSED.

        RFC 6749 section 4.1.3 with RFC 7636 section 4.5.
        """
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }  # fmt: skip
        headers = {}
        if self._secret is None:
            form["client_id"] = self.client_id
        else:
            pair = f"{quote(self.client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        addresses = self.addresses()
        try:
            with self._asking():
                answer = self._egress.post(addresses.token, form, headers)
        except EgressError:
            raise SealwardError(
                Reason.PROVIDER_REFUSED, "the identity provider does not accept this login: again"
            ) from None
        id_token, access_token = answer.get("id_token"), answer.get("access_token", "")
        if not isinstance(id_token, str) or not isinstance(access_token, str):
            raise unavailable()
        return id_token, access_token

    def key(self, key_id: str, algorithm: str) -> Key | None:
        """Return the key of this id; the keys are fetched anew where that may help."""
        with self._asking(), self._lock:
            if self._clock() - self._fetched < KEEP_SECONDS:
                found = jwks.find(self._keys, key_id, algorithm)
                known = key_id in {key["kid"] for key in self._keys}
                if found or known or self._clock() - self._fetched < REFRESH_SECONDS:
                    return found
            self._fetch()
            return jwks.find(self._keys, key_id, algorithm)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Hold a place among those that ask; raise PROVIDER_UNAVAILABLE where there is none."""
        if not self._room.acquire(blocking=False):
            raise unavailable()
        try:
            yield
        finally:
            self._room.release()

    def _get(self, url: str) -> dict[str, Any]:
        """Ask, unless there was no answer a moment ago: who waited for us does not wait anew."""
        if self._clock() - self._failed < PAUSE_SECONDS:
            raise unavailable()
        try:
            return self._egress.get(url)
        except SealwardError:
            self._failed = self._clock()
            raise

    def _fetch(self) -> None:
        answer = self._get(self._known_addresses().keys)
        try:
            self._keys = jwks.read_jwks(json.dumps(answer).encode(), ALGORITHMS, strict=False)
        except jwks.JwksError:
            raise unavailable() from None
        self._fetched = self._clock()

    def _known_addresses(self) -> Addresses:
        if self._addresses is not None and self._clock() - self._addresses[1] < ADDRESSES_SECONDS:
            return self._addresses[0]
        path = "/.well-known/openid-configuration"
        found = _addresses(self._get(self.issuer.rstrip("/") + path), self)
        if not all(map(self._egress.may_reach, (found.authorization, found.token, found.keys))):
            raise unavailable()
        self._addresses = (found, self._clock())
        return found


def _addresses(answer: dict[str, Any], provider: Provider) -> Addresses:
    # Section 4.3: the issuer has to be the one that was asked, to the letter.
    if answer.get("issuer") != provider.issuer:
        raise unavailable()
    methods = answer.get("code_challenge_methods_supported", ["S256"])
    if not isinstance(methods, list) or "S256" not in methods:
        raise unavailable()
    names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    return Addresses(*(str(answer.get(name, "")) for name in names))
