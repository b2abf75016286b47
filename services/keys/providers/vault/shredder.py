"""The one login that may destroy: made for a call, given back after it.

Its credentials are apart from the service's own, so they can be kept away until they are needed:
their files are read at each use, and a wrapped secret id that was put there meanwhile is unwrapped
then. So a login may be good for one act (`sealward vault setup --secret-id-uses 1`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from services.keys.providers.vault.api import Api, checked
from services.keys.providers.vault.config import AppRole, VaultConfig
from services.keys.providers.vault.login import (
    SHREDDER_ROLE,
    NoCredentialsError,
    Token,
    log_in_by_approle,
    unwrap,
)
from services.keys.providers.vault.troubles import TEXTS, RefusedError, UnavailableError
from services.keys.providers.vault.wire import Answer, Wire

_NOT_FOUND = 404
_NEW = (
    "bring a new one: sealward vault secret-id --out DIR, then sealward vault shredder-login"
    " --vault-credentials DIR"
)
"""What to do about a login that is not to be had."""


class Shredder:
    """Destroys versions of Transit keys and authorities of PKI.

    Raises SealwardError KEYSTORE_UNAVAILABLE, and NOT_SUPPORTED where it has no login.
    """

    def __init__(self, wire: Wire, config: VaultConfig) -> None:
        self._wire = wire
        self._config = config

    def retire(self, name: str, below: int) -> None:
        """Destroy the versions of a Transit key before `below`.

        Vault's order: versions that may not open or wrap any more, then trimming, which cannot be
        undone. All of it may be repeated after a failure.
        """
        mount = self._config.names.transit
        with self._logged_in() as api:
            change = api.transit.update_key_configuration
            # In this order: what wraps may not be older than what opens, and from the second time
            # on Vault has a bound for both.
            change(name, min_encryption_version=below, mount_point=mount)
            change(name, min_decryption_version=below, mount_point=mount)
            api.transit.trim_key(name, below, mount_point=mount)

    def drop(self, issuers: Sequence[str], key: Callable[[str, str], bool]) -> None:
        """Destroy issuers, by id, and the keys whose id and name `key` says yes to.

        Vault destroys no key that an issuer has. One that was left behind is found the next time.
        """
        pki = self._config.names.pki
        with self._logged_in() as api:
            for issuer in issuers:
                api.pki.delete_issuer(issuer, mount_point=pki)
            listed: Answer = api.adapter.list(f"/v1/{pki}/keys")
            found = listed.data.get("key_info")
            for at, info in (found if isinstance(found, dict) else {}).items():
                name = info.get("key_name") if isinstance(info, dict) else None
                if key(str(at), str(name or "")):
                    api.adapter.delete(f"/v1/{pki}/key/{at}")

    @contextmanager
    def _logged_in(self) -> Iterator[Api]:
        login = self._config.shredder
        if login is None:
            raise SealwardError(
                Reason.NOT_SUPPORTED,
                "destroying keys in Vault needs a login of its own:"
                " SEALWARD_KEYS_VAULT_SHREDDER_ROLE_ID_FILE",
            )
        try:
            api = checked(self._wire, self._log_in(login).value, passing=_NOT_FOUND)
            try:
                yield api
            finally:
                api.token.revoke_self()
        except UnavailableError as error:
            raise _unavailable(TEXTS[error.trouble]) from None
        except RefusedError:
            raise _unavailable("Vault refuses what the shredder asks: see its log") from None

    def _log_in(self, login: AppRole) -> Token:
        try:
            unwrap(self._wire, self._config, login, SHREDDER_ROLE)
            return log_in_by_approle(self._wire, self._config, login)
        except (NoCredentialsError, StartupError):
            raise _unavailable(f"the shredder's login cannot be used: {_NEW}") from None
        except RefusedError:
            raise _unavailable(
                f"Vault refuses the shredder's login, it may be used up: {_NEW}"
            ) from None


def _unavailable(text: str) -> SealwardError:
    return SealwardError(Reason.KEYSTORE_UNAVAILABLE, text, retry_after=1.0)
