"""Which service may have branch keys of which purpose: one table, deny by default.

A service that is taken over opens what it is there for and nothing of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext

GRANTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "service/gateway": frozenset({"session", "user"}),
        "service/inference": frozenset({"model", "job"}),
        "service/keys": frozenset({"witness", "trust", "backup"}),
        "service/audit": frozenset(
            {"audit-segment", "audit-index", "audit-patient", "log-signing"}
        ),
    }
)


def check(caller: Identity, context: EncryptionContext) -> None:
    """Raise IDENTITY_FORBIDDEN unless the caller may have keys of this purpose."""
    check_purpose(caller, context.purpose)


def check_purpose(caller: Identity, purpose: str) -> None:
    """As `check`, of a purpose alone."""
    if purpose not in GRANTS.get(caller.role, ()):
        raise SealwardError(
            Reason.IDENTITY_FORBIDDEN,
            f"{caller.role} has no keys of this purpose",
            field="context.purpose",
        )


def holder_of(purpose: str) -> str:
    """Return who keeps branch keys of a purpose, as `service/audit`; empty when nobody does."""
    return next((role for role, purposes in GRANTS.items() if purpose in purposes), "")
