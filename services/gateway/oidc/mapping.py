"""Claims to roles: a file of the operator. What it does not name gives nothing. Pure.

    {"claim": "groups",
     "roles": {"cardiology-staff": ["clinician"], "it-security": ["security-admin"]},
     "second_factor": ["mfa", "hwk"]}

`claim` is a list of texts in the ID token, or one text; `second_factor` the values of `amr` (RFC
8176) that count as a second factor, none when it is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealward.kit.errors import StartupError
from services.gateway.users import ROLES


@dataclass(frozen=True, slots=True)
class RoleMapping:
    """What the file says."""

    claim: str
    roles: Mapping[str, tuple[str, ...]]
    second_factor: frozenset[str]

    def roles_of(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the roles of a person with these claims, sorted; empty for none."""
        found: set[str] = set()
        for value in _texts(claims.get(self.claim)):
            found |= set(self.roles.get(value, ()))
        return tuple(sorted(found))

    def proven(self, claims: Mapping[str, Any]) -> bool:
        """Whether the provider says that there was a second factor."""
        return bool(self.second_factor & set(_texts(claims.get("amr"))))


def read_mapping(path: Path) -> RoleMapping:
    """Read the file; raise StartupError that says what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError:
        raise StartupError("the file of roles (oidc_roles_file) cannot be read") from None
    return parse_mapping(data)


def parse_mapping(data: bytes) -> RoleMapping:
    """Read what the file holds; raise StartupError."""
    try:
        return _mapping(json.loads(data))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        said = str(error) if isinstance(error, _WrongError) else "it has another form than told"
        raise StartupError(f"the file of roles (oidc_roles_file) is refused: {said}") from None


class _WrongError(ValueError):
    """What is wrong, in words of our own."""


def _mapping(content: dict[str, Any]) -> RoleMapping:
    if unknown := set(content) - {"claim", "roles", "second_factor"}:
        raise _WrongError(f"{', '.join(sorted(unknown))} is not known")
    claim, table = content["claim"], content["roles"]
    amr = content.get("second_factor", [])
    if not isinstance(claim, str) or not claim or not isinstance(amr, list):
        raise _WrongError("claim is a text, second_factor a list")
    roles: dict[str, tuple[str, ...]] = {}
    for value, named in table.items():
        if not isinstance(named, list) or not set(named) <= set(ROLES):
            raise _WrongError(f"roles are lists of {', '.join(ROLES)}")
        roles[value] = tuple(named)
    return RoleMapping(claim, roles, frozenset(_texts(amr)))


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
