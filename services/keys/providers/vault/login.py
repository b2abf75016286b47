"""Logging in to Vault, by role id and secret id or by client certificate."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sealward.kit.errors import StartupError
from sealward.seal.secret import Secret
from services.keys.files import read_private, write_durable
from services.keys.providers.vault.api import Api, checked, mount
from services.keys.providers.vault.config import AppRole, ClientCertificate, VaultConfig
from services.keys.providers.vault.troubles import RefusedError
from services.keys.providers.vault.wire import Answer, Wire

ROLE = "keys"
SHREDDER_ROLE = "shredder"
_AS = {"name": ROLE}


@dataclass(frozen=True, slots=True)
class Token:
    """A Vault token and its life in seconds, counted from when it was asked for."""

    value: Secret
    seconds: float
    renewable: bool


class NoCredentialsError(Exception):
    """A file that the login needs is missing or cannot be used. The text names it."""


def log_in(wire: Wire, config: VaultConfig) -> Token:
    """Log the keys service in.

    Raises UnavailableError, RefusedError where Vault refuses, NoCredentialsError.
    """
    login = config.login
    if isinstance(login, ClientCertificate):
        for path in (login.cert_file, login.key_file):
            _private(path)
        # A renewed certificate is shown on a new connection only.
        wire.reconnect()
        # Not hvac's method, which wants to read the certificate itself.
        return read_token(_api(wire).adapter.post(f"/v1/{config.names.cert}/login", json=_AS).body)
    return log_in_by_approle(wire, config, login)


def log_in_by_approle(wire: Wire, config: VaultConfig, login: AppRole) -> Token:
    """As `log_in`, by role id and secret id."""
    answer: Answer = _api(wire).approle.login(
        _secret(login.role_id_file),
        _secret(login.secret_id_file or login.kept_file),
        use_token=False,
        mount_point=mount(config.names.approle),
    )
    return read_token(answer.body)


def unwrap(wire: Wire, config: VaultConfig, login: AppRole, role: str) -> bool:
    """Exchange a wrapped secret id for the secret id and keep it; False when there is no new one.

    The wrapping token works once. Where it does not, somebody else may hold the secret id: that
    stops the start. So does a token that was wrapped by anything but our role. Raises
    UnavailableError, StartupError.
    """
    if login.wrapped_file is None or login.kept_file is None or not login.wrapped_file.exists():
        return False
    wrapping = _secret(login.wrapped_file)
    # The file may be one that we cannot remove.
    taken = login.kept_file.with_suffix(".taken")
    itself = Secret(wrapping.encode("ascii"))
    mark = sha256(wrapping.encode()).hexdigest().encode()
    if taken.exists() and taken.read_bytes() == mark:
        return False
    expected = f"{config.names.approle}/role/{role}/secret-id"
    try:
        api = _api(wire, itself)
        found: Answer = api.adapter.post("/v1/sys/wrapping/lookup", json={"token": wrapping})
        if found.data.get("creation_path") != expected:
            raise StartupError(
                f"{login.wrapped_file} was not made for this service: do not use it, and find out"
                " where it came from"
            )
        secret = str(api.sys.unwrap().body["data"]["secret_id"])
    except (RefusedError, KeyError, TypeError):
        raise StartupError(
            f"the wrapped secret id in {login.wrapped_file} has expired or was unwrapped before: if"
            " it was not you, somebody else holds it; withdraw it and make a new one with"
            " `sealward vault secret-id`"
        ) from None
    login.kept_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durable(login.kept_file, secret.encode() + b"\n")
    write_durable(taken, mark)
    with suppress(OSError):
        login.wrapped_file.unlink()
    return True


def fingerprint(config: VaultConfig) -> bytes:
    """A digest of the login's files, to notice when somebody has put new ones there."""
    login = config.login
    paths = (
        (login.cert_file, login.key_file)
        if isinstance(login, ClientCertificate)
        else (login.role_id_file, login.secret_id_file or login.kept_file)
    )
    digest = sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes() if path else b"")
        except OSError:
            digest.update(b"\0missing")
    return digest.digest()


def read_token(answer: Mapping[str, Any]) -> Token:
    """Take the token out of a login's or a renewal's answer; raise RefusedError for a root token.

    A service that holds a root token has every right that there is: it does not serve with it.
    """
    auth = answer.get("auth")
    try:
        if not isinstance(auth, dict) or not auth.get("client_token"):
            raise ValueError("no token")
        value, seconds = str(auth["client_token"]).encode("ascii"), lease_seconds(auth)
        policies = list(auth.get("policies") or ())
    except (ValueError, TypeError):
        raise RefusedError(400, ("no token",)) from None
    if "root" in policies:
        raise RefusedError(400, ("a root token",))
    return Token(Secret(value), seconds, bool(auth.get("renewable")))


def lease_seconds(auth: Mapping[str, Any]) -> float:
    """Return how long a token lives; raise ValueError or TypeError for what is no time."""
    try:
        seconds = float(auth.get("lease_duration") or 0)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ValueError("no time")
    return seconds


def _api(wire: Wire, token: Secret | None = None) -> Api:
    # Not repeatable: a secret id may be good for one login.
    return checked(wire, token, repeatable=False)


def _secret(path: Path | None) -> str:
    if path is None:
        raise NoCredentialsError("no file with a secret id is set")
    try:
        text = _private(path).decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or any(character.isspace() for character in text):
        raise NoCredentialsError(f"{path} does not hold one word")
    return text


def _private(path: Path) -> bytes:
    try:
        # Root's too: an agent may have put it there for us.
        return read_private(path, frozenset({0, os.geteuid()}))
    except FileNotFoundError:
        raise NoCredentialsError(f"{path} does not exist") from None
    except StartupError as error:
        raise NoCredentialsError(str(error)) from None
