"""Names in Vault: where our engines, roles and keys are, and what a context looks like there.

Everything of a deployment stands below one prefix (`sealward` unless set):

    PREFIX/transit           key-encryption keys, `kek-TENANT.PURPOSE`, and `canary`
    PREFIX/pki               the certificate authority and one role for each kind of certificate
    auth/PREFIX-approle      logins by role id and secret id
    auth/PREFIX-cert         logins by client certificate
    policies                 PREFIX-keys, -shredder, -auditor, -admin, with `/` as `-`
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from hashlib import sha256

from sealward.kit.identity import SERVICES, Identity
from sealward.seal.context import KEY_SCHEMA, EncryptionContext

DEFAULT_PREFIX = "sealward"
PREFIX = re.compile(r"[a-z0-9][a-z0-9-]{0,47}(/[a-z0-9][a-z0-9-]{0,47}){0,3}")

CANARY = "canary"
"""A Transit key of no tenant: what is wrapped under it shows that a Vault is the right one."""

# A tenant holds no full stop, so the first one divides, whatever hyphens there are.
_KEK = re.compile(r"kek-([a-z0-9][a-z0-9-]*)\.([a-z][a-z0-9-]*)")


@dataclass(frozen=True, slots=True)
class Names:
    """The paths below a prefix, without `/v1/`."""

    prefix: str = DEFAULT_PREFIX

    @property
    def transit(self) -> str:
        """The Transit engine."""
        return f"{self.prefix}/transit"

    @property
    def pki(self) -> str:
        """The PKI engine."""
        return f"{self.prefix}/pki"

    @property
    def approle(self) -> str:
        """Logins by role id and secret id."""
        return f"auth/{self.prefix}-approle"

    @property
    def cert(self) -> str:
        """Logins by client certificate."""
        return f"auth/{self.prefix}-cert"

    def policy(self, name: str) -> str:
        """The policy of `keys`, `shredder`, `auditor` or `admin`."""
        return f"{self.prefix.replace('/', '-')}-{name}"

    def key(self, name: str) -> str:
        """A Transit key."""
        return f"{self.transit}/keys/{name}"


def kek_name(tenant: str, purpose: str) -> str:
    """The name of a key-encryption key in Transit."""
    return f"kek-{tenant}.{purpose}"


def read_kek_name(name: str) -> tuple[str, str] | None:
    """Tenant and purpose of a Transit key; None for a key that is no key-encryption key."""
    found = _KEK.fullmatch(name)
    return (found[1], found[2]) if found else None


def derivation_context(context: EncryptionContext) -> str:
    """Return what Transit derives the key from: base64 of the SHA-256 of the canonical context.

    Canonical: JSON with sorted keys and no white space, in ASCII. Transit does not bind associated
    data where a data key is made, and cannot rewrap what has some; a derived key binds everywhere.
    """
    pairs = dict(context.pairs(KEY_SCHEMA))
    text = json.dumps(pairs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return base64.b64encode(sha256(text.encode("ascii")).digest()).decode("ascii")


PKI_ROLES = (*(f"service-{name}" for name in sorted(SERVICES)), "admin-local", "user", "workload")
"""One role for each service, for the administrator, and for each kind of caller."""


def pki_role(identity: Identity) -> str:
    """The PKI role that signs for an identity."""
    if identity.kind in ("service", "admin"):
        return f"{identity.kind}-{identity.name}"
    return identity.kind
