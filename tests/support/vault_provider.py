"""The Vault provider on a real server, with a prefix of its own for each test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealward.kit.enroll import write_private
from services.keys.providers.vault.config import AppRole, Target, VaultConfig, read_addresses
from services.keys.providers.vault.login import ROLE, SHREDDER_ROLE, unwrap
from services.keys.providers.vault.names import Names
from services.keys.providers.vault.pki import VaultAuthority
from services.keys.providers.vault.session import VaultSession
from services.keys.providers.vault.setup import Administrator, Plan
from services.keys.providers.vault.shredder import Shredder
from services.keys.providers.vault.transit import VaultBranchKeys
from tests.support.vault import VaultServer, shared

TD = "sealward.local"


@dataclass
class Opened:
    """A provider that is logged in."""

    server: VaultServer
    session: VaultSession
    branches: VaultBranchKeys
    authority: VaultAuthority


def plan_of(server: VaultServer, **options: object) -> Plan:
    """A plan with a fresh prefix."""
    prefix = f"test-{secrets.token_hex(4)}"
    server.prefixes.append(prefix)
    return Plan(Names(prefix), TD, **options)  # type: ignore[arg-type]


def target_of(server: VaultServer, **options: object) -> Target:
    """Where the server is."""
    ca = server.tls[2] if server.tls else None
    return Target(read_addresses(server.address), ca_file=ca, **options)  # type: ignore[arg-type]


def approle(folder: Path, admin: Administrator, names: Names, role: str) -> AppRole:
    """A login of a role, its secret id wrapped."""
    kind = "" if role == ROLE else f"{role}-"
    folder.mkdir(exist_ok=True)
    login = AppRole(
        folder / f"{kind}role-id",
        wrapped_file=folder / f"{kind}wrapped-secret-id",
        kept_file=folder / "kept" / f"{kind}secret-id",
    )
    write_private(login.role_id_file, admin.role_id(names, role).encode())
    assert login.wrapped_file is not None
    write_private(login.wrapped_file, admin.wrapped_secret_id(names, role, 60).encode())
    return login


def set_up(
    folder: Path, server: VaultServer, plan: Plan | None = None, **options: object
) -> VaultConfig:
    """Set a fresh prefix up; return the configuration of a keys service."""
    plan = plan or plan_of(server)
    admin = Administrator(target_of(server, timeout=20.0), server.token)
    admin.set_up(plan)
    login = approle(folder, admin, plan.names, ROLE)
    shredder = approle(folder, admin, plan.names, SHREDDER_ROLE)
    admin.close()
    return VaultConfig(target_of(server, **options), login, plan.names, shredder)


@contextmanager
def opened(
    folder: Path, server: VaultServer, config: VaultConfig | None = None
) -> Iterator[Opened]:
    """Log in to a Vault that is set up."""
    config = config or set_up(folder, server)
    session = VaultSession(config, hard_seconds=900.0)
    try:
        for login, role in ((config.login, ROLE), (config.shredder, SHREDDER_ROLE)):
            if isinstance(login, AppRole):
                unwrap(session.wire, config, login, role)
        session.open()
        shredder = Shredder(session.wire, config)
        authority = VaultAuthority(session, shredder, TD)
        authority.load()
        yield Opened(server, session, VaultBranchKeys(session, shredder), authority)
    finally:
        session.close()


@contextmanager
def shared_provider(folder: Path) -> Iterator[Opened]:
    """A provider on the server that tests share."""
    with opened(folder, shared()) as found:
        yield found
