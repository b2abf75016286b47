"""Settings of the keys service: `SEALWARD_KEYS_<NAME>`, and `VAULT_ADDR` and the like."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from sealward.kit.settings import ServiceSettings, settings_config
from services.keys.hsm import Hsm
from services.keys.providers.vault.config import (
    AppRole,
    ClientCertificate,
    Target,
    VaultConfig,
    read_addresses,
    refuse_unsafe,
)
from services.keys.providers.vault.names import DEFAULT_PREFIX, PREFIX, Names

_SHORTEST_WAIT = 86_400
_FILES = (
    "unlock_file", "pkcs11_module", "pkcs11_pin_file", "recovery_recipients_file",
    "vault_cacert", "vault_role_id_file", "vault_secret_id_file", "vault_wrapped_secret_id_file",
    "vault_client_cert_file", "vault_client_key_file", "vault_shredder_role_id_file",
    "vault_shredder_secret_id_file", "vault_shredder_wrapped_secret_id_file",
)  # fmt: skip


class KeysSettings(ServiceSettings):
    """What the keys service needs beside the common settings.

    `certificate_seconds` is the life of every service's and the administrator's certificate.
    """

    model_config = settings_config("keys")

    provider: Literal["embedded", "vault"] = "embedded"
    """Where the keys are: the sealed keystore of this machine; HashiCorp Vault or OpenBao."""
    enroll_dir: Path
    """Folder of local enrolment, watched by this service."""
    identity_dir: None = None
    """Not for this service: it signs its own certificate."""
    join_address: str = ""
    """host:port of the listener where other machines join; empty = there is none."""
    unlock_file: Path | None = None
    """File with what opens the root key: an age identity or a passphrase. None = ask at the
    terminal."""
    pkcs11_module: Path | None = None
    """PKCS#11 module (a shared library): a key in its token unlocks the keystore, and no secret."""
    pkcs11_token: str = ""
    """Label of the token."""
    pkcs11_key: str = ""
    """Label of the key: AES of 256 bits or RSA, sensitive and not extractable."""
    pkcs11_pin_file: Path | None = None
    """File (mode 0600) with the PIN."""
    pkcs11_seconds: float = Field(default=20.0, gt=0, le=300)
    """How long one use of the token may take."""
    recovery_recipients_file: Path | None = None
    """File with age recipients (`age1…`), one a line, that backups are sealed to as well."""
    user_certificate_seconds: int = Field(default=86_400, ge=60, le=7 * 86_400)
    """Life of a user's or workload's certificate."""
    ca_settle_seconds: int = Field(default=30, ge=0, le=86_400)
    """With `certs rotate --ca --now`: how long each step waits for callers of other machines."""
    destroy_wait_seconds: int = Field(default=7 * 86_400, ge=0, le=90 * 86_400)
    """How long a destruction of a key waits after its approval. Below a day in development only."""
    lease_soft_seconds: int = Field(default=300, ge=1, le=86_400)
    """A holder of a branch key asks again after this time."""
    lease_hard_seconds: int = Field(default=900, ge=1, le=86_400)
    """A holder of a branch key forgets it after this time."""
    lease_max_messages: int = Field(default=1 << 20, ge=1, le=1 << 32)
    """Messages that may be sealed under one lease."""
    lease_max_bytes: int = Field(default=64 << 30, ge=1, le=1 << 60)
    """Bytes that may be sealed under one lease."""

    vault_addr: str = Field(
        default="", validation_alias=AliasChoices("SEALWARD_KEYS_VAULT_ADDR", "VAULT_ADDR")
    )
    """`https://HOST:PORT` of Vault, several with commas between (high availability)."""
    vault_namespace: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_./-]*$",
        validation_alias=AliasChoices("SEALWARD_KEYS_VAULT_NAMESPACE", "VAULT_NAMESPACE"),
    )
    """Namespace (Vault Enterprise, OpenBao)."""
    vault_cacert: Path | None = Field(
        default=None, validation_alias=AliasChoices("SEALWARD_KEYS_VAULT_CACERT", "VAULT_CACERT")
    )
    """PEM file with what Vault's certificate is verified against; None = the machine's own."""
    vault_prefix: str = Field(default=DEFAULT_PREFIX, pattern=f"^{PREFIX.pattern}$")
    """What this deployment's engines, logins and policies are below."""
    vault_role_id_file: Path | None = None
    """File with the role id of the AppRole login."""
    vault_secret_id_file: Path | None = None
    """File with its secret id, read anew at each login."""
    vault_wrapped_secret_id_file: Path | None = None
    """File with a response-wrapping token for the secret id instead: unwrapped at the next start,
    then removed; the secret id is kept in the data folder."""
    vault_client_cert_file: Path | None = None
    """PEM file with the client certificate of the certificate login, read anew at each login."""
    vault_client_key_file: Path | None = None
    """PEM file with its private key."""
    vault_shredder_role_id_file: Path | None = None
    """File with the role id of the login that may destroy keys, read when it is needed."""
    vault_shredder_secret_id_file: Path | None = None
    """File with its secret id."""
    vault_shredder_wrapped_secret_id_file: Path | None = None
    """File with a response-wrapping token for it instead."""
    vault_timeout_seconds: float = Field(default=3.0, ge=0.2, le=4.0)
    """How long one call of Vault may take, over all addresses. Callers wait 5 s for an answer."""
    vault_calls: int = Field(default=8, ge=1, le=256)
    """Calls of Vault under way at once, at most an eighth of `workers`; as many may wait."""

    @field_validator(*_FILES, mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        # The empty path would be the working folder.
        return value or None

    @model_validator(mode="after")
    def _time_to_think(self) -> Self:
        if self.destroy_wait_seconds < _SHORTEST_WAIT and not self.development:
            raise ValueError(
                f"SEALWARD_KEYS_DESTROY_WAIT_SECONDS is {_SHORTEST_WAIT} at least (less with"
                " SEALWARD_KEYS_DEVELOPMENT=true)"
            )
        return self

    @model_validator(mode="after")
    def _one_provider(self) -> Self:
        if self.hsm() is not None and self.provider == "vault":
            raise ValueError("SEALWARD_KEYS_PKCS11_MODULE is of the embedded provider alone")
        if self.provider == "vault":
            refuse_unsafe(os.environ)
            self.vault()
            if self.unlock_file is not None:
                raise ValueError("SEALWARD_KEYS_UNLOCK_FILE is of the embedded provider alone")
        else:
            # VAULT_ADDR alone says nothing: it stands in many environments.
            given = [name for name in _FILES if name.startswith("vault_") and getattr(self, name)]
            given = [name for name in given if name != "vault_cacert"]
            if given:
                raise ValueError(
                    f"SEALWARD_KEYS_{given[0].upper()} is set, and SEALWARD_KEYS_PROVIDER is not"
                    " vault"
                )
        return self

    def hsm(self) -> Hsm | None:
        """Return the token that unlocks the keystore; raise ValueError saying what is missing."""
        given = (self.pkcs11_module, self.pkcs11_token, self.pkcs11_key, self.pkcs11_pin_file)
        if not any(given):
            return None
        if self.pkcs11_module is None or self.pkcs11_pin_file is None or not all(given):
            raise ValueError("SEALWARD_KEYS_PKCS11_MODULE, _TOKEN, _KEY and _PIN_FILE go together")
        if self.unlock_file is not None:
            raise ValueError(
                "SEALWARD_KEYS_PKCS11_MODULE and SEALWARD_KEYS_UNLOCK_FILE: one unlocks, not both"
            )
        return Hsm(
            self.pkcs11_module,
            self.pkcs11_token,
            self.pkcs11_key,
            self.pkcs11_pin_file,
            self.pkcs11_seconds,
        )

    def vault(self) -> VaultConfig:
        """Return what the Vault provider needs; raise ValueError saying what is missing."""
        certificate = self._certificate()
        approle = self._approle("")
        if (certificate is None) is (approle is None):
            raise ValueError(
                "Vault needs one login: SEALWARD_KEYS_VAULT_ROLE_ID_FILE with a secret id, or"
                " SEALWARD_KEYS_VAULT_CLIENT_CERT_FILE with its key"
            )
        target = Target(
            read_addresses(self.vault_addr),
            self.vault_namespace,
            self.vault_cacert,
            self.vault_timeout_seconds,
            max(1, min(self.vault_calls, self.workers // 8)),
            certificate,
        )
        if certificate and any(not address.startswith("https:") for address in target.addresses):
            raise ValueError("a login by certificate needs https")
        login = certificate or approle
        assert login is not None  # noqa: S101 - one of the two, checked above
        return VaultConfig(target, login, Names(self.vault_prefix), self._approle("shredder_"))

    def _certificate(self) -> ClientCertificate | None:
        certificate, key = self.vault_client_cert_file, self.vault_client_key_file
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            raise ValueError(
                "SEALWARD_KEYS_VAULT_CLIENT_CERT_FILE and _CLIENT_KEY_FILE go together"
            )
        return ClientCertificate(certificate, key)

    def _approle(self, kind: str) -> AppRole | None:
        role = getattr(self, f"vault_{kind}role_id_file")
        secret = getattr(self, f"vault_{kind}secret_id_file")
        wrapped = getattr(self, f"vault_{kind}wrapped_secret_id_file")
        setting = f"SEALWARD_KEYS_VAULT_{kind.upper()}"
        if role is None and secret is None and wrapped is None:
            return None
        if role is None or (secret is None) is (wrapped is None):
            raise ValueError(
                f"{setting}ROLE_ID_FILE needs one of {setting}SECRET_ID_FILE and"
                f" {setting}WRAPPED_SECRET_ID_FILE"
            )
        kept = self.data_dir / "vault" / f"{kind.replace('_', '-')}secret-id" if wrapped else None
        return AppRole(role, secret, wrapped, kept)
