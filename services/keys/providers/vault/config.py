"""Which Vault, and how to log in to it: checked before anything is sent."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from services.keys.providers.vault.names import Names

_MOST_ADDRESSES = 16
_TRUE = frozenset({"1", "t", "true"})


@dataclass(frozen=True, slots=True)
class AppRole:
    """Login by role id and secret id, both in files that are read anew at each login.

    `wrapped_file` holds a response-wrapping token for the secret id instead: it is unwrapped once
    and the secret id is kept in `kept_file`.
    """

    role_id_file: Path
    secret_id_file: Path | None = None
    wrapped_file: Path | None = None
    kept_file: Path | None = None


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """Login by a client certificate (PEM files, read anew at each login)."""

    cert_file: Path
    key_file: Path


@dataclass(frozen=True, slots=True)
class Target:
    """Which servers, and how they are reached.

    `timeout` (seconds) bounds one call; at most `calls` are under way, and as many may wait.
    `certificate` is shown in the TLS handshake.
    """

    addresses: tuple[str, ...]
    namespace: str = ""
    ca_file: Path | None = None
    timeout: float = 3.0
    calls: int = 16
    certificate: ClientCertificate | None = None

    @property
    def single_host(self) -> bool:
        """True when every address is this machine's own."""
        return all(_is_loopback(urlsplit(address).hostname or "") for address in self.addresses)


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """What the provider needs. `shredder`: the login that may destroy, where there is one."""

    target: Target
    login: AppRole | ClientCertificate
    names: Names = field(default_factory=Names)
    shredder: AppRole | None = None


def read_addresses(text: str) -> tuple[str, ...]:
    """Split VAULT_ADDR, one or several addresses with commas between; raise ValueError.

    Each is `https://host[:port]`. Plain http is for this machine's own loopback alone.
    """
    addresses = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    if not addresses:
        raise ValueError("VAULT_ADDR names no Vault server")
    if len(addresses) > _MOST_ADDRESSES or len(set(addresses)) != len(addresses):
        raise ValueError(f"VAULT_ADDR may name up to {_MOST_ADDRESSES} servers, each once")
    for address in addresses:
        _check_address(address)
    return addresses


def refuse_unsafe(environ: Mapping[str, str]) -> None:
    """Raise ValueError for variables of Vault's own tools that would weaken the connection."""
    if environ.get("VAULT_SKIP_VERIFY", "").lower() in _TRUE:
        raise ValueError("VAULT_SKIP_VERIFY is set: a Vault whose certificate is not checked")
    if environ.get("VAULT_TOKEN"):
        raise ValueError(
            "VAULT_TOKEN is set: the service logs in by itself and uses no other token"
        )


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = parts = None
    if (
        parts is None
        or not host
        or parts.scheme not in ("https", "http")
        or parts.path
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise ValueError("an address of Vault must be https://HOST[:PORT]")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError("plain http to Vault is for a loopback address alone")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
