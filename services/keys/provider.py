"""The provider that the settings name, and that a data folder never changes.

A folder belongs to the provider that it began with: what was sealed under keys of one is lost to
the other, so a start with another provider is refused, and so is a Vault that does not hold this
folder's keys. `keystore/` is the embedded provider's; `provider.json` says that it is Vault's:

    deployment     an id of this deployment
    trust_domain   of every name that it certifies
    canary         a data key, wrapped by Vault when the folder began: where it does not open, the
                   Vault is another one
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sealward.kit.context import ServiceContext
from sealward.kit.errors import SealwardError, StartupError
from services.keys.authority import KeystoreAuthority, new_authority, utc_now
from services.keys.files import read_private, write_durable
from services.keys.keystore import Keystore, open_or_create
from services.keys.keystoreformat import Content
from services.keys.providers.base import BranchKeys, CertificateAuthority, Condition
from services.keys.providers.embedded import EmbeddedBranchKeys
from services.keys.settings import KeysSettings
from services.keys.unlock import unlock_of

if TYPE_CHECKING:
    from services.keys.providers.vault.session import VaultSession

MARKER = "provider.json"
# A Vault that starts at the same time gets this long; after that the supervisor tries again, and
# shows why.
_LONGEST_WAIT = 5.0

OnChange = Callable[[Condition], None]


@dataclass
class Provider:
    """A provider that is open. `created`: the folder began with this start.

    `keystore` and `session` are of one provider each.
    """

    branches: BranchKeys
    authority: CertificateAuthority
    deployment: str
    created: bool
    keystore: Keystore | None = None
    session: VaultSession | None = None
    _closing: list[Callable[[], None]] = field(default_factory=list)

    def start(self, on_change: OnChange) -> None:
        """Watch the provider from now on; `on_change` is told how it is, at once and later."""
        on_change(self.branches.condition())
        if self.session is not None:
            self.session.start(on_change)

    def close(self) -> None:
        """Give everything back."""
        for close in self._closing:
            close()


def open_provider(ctx: ServiceContext[KeysSettings]) -> Provider:
    """Open the provider of the settings; raise StartupError with one clear line."""
    settings = ctx.settings
    marker = settings.data_dir / MARKER
    if settings.provider == "vault":
        if (settings.data_dir / "keystore").exists():
            raise StartupError(_switched(settings.data_dir, "the embedded keystore", "vault"))
        return _open_vault(ctx, marker)
    if marker.exists():
        raise StartupError(_switched(settings.data_dir, "Vault", "embedded"))
    return _open_embedded(settings)


def _open_embedded(settings: KeysSettings) -> Provider:
    keystore, created = open_or_create(
        settings.data_dir,
        unlock_of(settings),
        lambda deployment: Content(
            deployment=deployment,
            trust_domain=settings.trust_domain,
            authorities=(new_authority(settings.trust_domain, utc_now()),),
        ),
    )
    if keystore.content.trust_domain != settings.trust_domain:
        raise StartupError("the keystore belongs to another trust domain than the settings name")
    return Provider(
        EmbeddedBranchKeys(keystore),
        KeystoreAuthority(keystore),
        keystore.content.deployment,
        created,
        keystore=keystore,
        _closing=[keystore.close],
    )


def _open_vault(ctx: ServiceContext[KeysSettings], marker: Path) -> Provider:
    # What Vault takes is loaded only where it is used.
    from services.keys.providers.vault.canary import Canary
    from services.keys.providers.vault.config import AppRole
    from services.keys.providers.vault.login import ROLE, SHREDDER_ROLE, unwrap
    from services.keys.providers.vault.pki import VaultAuthority
    from services.keys.providers.vault.session import VaultSession
    from services.keys.providers.vault.shredder import Shredder
    from services.keys.providers.vault.transit import VaultBranchKeys
    from services.keys.providers.vault.troubles import UnavailableError

    settings = ctx.settings
    config = settings.vault()
    known = _read_marker(marker, settings.trust_domain)
    lock = _lock(settings.data_dir / "provider.lock")
    session = VaultSession(config, settings.lease_hard_seconds)
    try:
        session.wait(min(settings.start_seconds, _LONGEST_WAIT))
        for login, role in ((config.login, ROLE), (config.shredder, SHREDDER_ROLE)):
            if isinstance(login, AppRole) and unwrap(session.wire, config, login, role):
                ctx.log.info("vault.secret-id-unwrapped", name=role)
        session.open()
        shredder = Shredder(session.wire, config)
        authority = VaultAuthority(session, shredder, settings.trust_domain)
        authority.load()
        branches = VaultBranchKeys(session, shredder)
        if not known and branches.names():
            raise StartupError(
                f"the Vault at {session.wire.address} holds keys of another folder below"
                f" {config.names.prefix}: start with that folder, or set up a prefix for this one"
                " (sealward vault setup --prefix)"
            )
        deployment = known["deployment"] if known else secrets.token_hex(4)
        canary = Canary(session, deployment)
        if known:
            canary.check(known["canary"])
        else:
            _write_marker(marker, deployment, settings.trust_domain, canary.make())
    except BaseException as error:
        session.close()
        os.close(lock)
        if isinstance(error, UnavailableError):
            raise StartupError(f"{error} ({session.wire.address})") from None
        if isinstance(error, SealwardError):
            raise StartupError(f"Vault cannot be used: {error.message}") from None
        raise
    return Provider(
        branches,
        authority,
        deployment,
        created=not known,
        session=session,
        _closing=[session.close, lambda: os.close(lock)],
    )


def _switched(folder: Path, began: str, asked: str) -> str:
    return (
        f"{folder} began with {began} and cannot go on with SEALWARD_KEYS_PROVIDER={asked}: what"
        " was sealed would not open any more"
    )


def _lock(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        raise StartupError(f"{path} cannot be written") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StartupError("the keys' data folder is in use by another process") from None
    return descriptor


def _read_marker(path: Path, trust_domain: str) -> dict[str, str]:
    try:
        found = json.loads(read_private(path))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(found.get(name), str) for name in ("deployment", "trust_domain", "canary")
    ):
        raise StartupError(f"{path} is damaged: restore it from a backup")
    if found["trust_domain"] != trust_domain:
        raise StartupError(f"{path} belongs to another trust domain than the settings name")
    return found


def _write_marker(path: Path, deployment: str, trust_domain: str, canary: str) -> None:
    content = {"deployment": deployment, "trust_domain": trust_domain, "canary": canary}
    try:
        write_durable(path, json.dumps({"provider": "vault", **content}).encode() + b"\n")
    except OSError:
        raise StartupError(f"{path} cannot be written") from None
