"""What can be wrong with Vault, as a closed set: it stands in status, metrics, logs and records."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Trouble(StrEnum):
    """Why the provider cannot answer now."""

    UNREACHABLE = "vault-unreachable"
    """No server answers at any address."""
    UNTRUSTED = "vault-untrusted"
    """TLS fails: the server's certificate does not verify, or it does not take ours."""
    SLOW = "vault-slow"
    """A server took the call and did not answer in time."""
    SEALED = "vault-sealed"
    """Vault is sealed, or not initialised."""
    STANDBY = "vault-standby"
    """Only standby nodes answer, and none of them reaches an active one."""
    THROTTLED = "vault-throttled"
    """Vault refuses calls for their number."""
    FAILING = "vault-failing"
    """Vault answers with an error of its own, or with what is no answer of Vault."""
    LOGIN_REFUSED = "vault-login-refused"
    """Vault refuses the login."""
    FORBIDDEN = "vault-forbidden"
    """The login is good, and its policy does not allow this call."""


TEXTS = {
    Trouble.UNREACHABLE: "Vault cannot be reached",
    Trouble.UNTRUSTED: "TLS with Vault fails: one side does not accept the other's certificate",
    Trouble.SLOW: "Vault does not answer in time",
    Trouble.SEALED: "Vault is sealed",
    Trouble.STANDBY: "Vault has no active node",
    Trouble.THROTTLED: "Vault refuses calls for their number",
    Trouble.FAILING: "Vault fails",
    Trouble.LOGIN_REFUSED: "Vault refuses the login of the keys service",
    Trouble.FORBIDDEN: "the policy in Vault does not allow this to the keys service",
}


class UnavailableError(Exception):
    """Vault gave no answer that could be used."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(TEXTS[trouble])
        self.trouble = trouble


class RefusedError(Exception):
    """Vault understood the call and refused it (4xx). `errors` are Vault's own words: never shown.

    They may quote what was sent. `data`: what came beside them, such as a batch with bad items.
    """

    def __init__(
        self, status: int, errors: tuple[str, ...], data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"Vault answered {status}")
        self.status = status
        self.errors = errors
        self.data = data or {}

    def says(self, text: str) -> bool:
        """True when one of the errors holds this text."""
        return any(text in error for error in self.errors)
